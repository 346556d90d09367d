"""One module a stage, read from top to bottom; stages never import each other.

Every stage has the same signature: ``run(recipe, inputs, out, context) -> StageResult``.
``inputs`` maps the names of ``contract.graph.inputs_of`` to verified local directories, ``out`` is an empty directory
whose files become the artifact, ``context`` holds what depends on where the stage runs (see ``lifecycle.Context``).
"""
