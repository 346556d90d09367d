"""What operator and stages agree on: recipes, the stage graph, digests, task files, manifests, exit codes.

All that the operator may import of the pipeline. Needs pydantic only.
"""
