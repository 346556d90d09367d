"""What computed a table: an engine's facts, in the metadata of each chunk's table and of the whole one's."""

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

# Of a chunk: the facts of its engine as JSON. Of a whole table: the JSON list of those that differ.
ENGINE_KEY = b"egt.engine"


def with_facts(table: pa.Table, facts: Mapping[str, str]) -> pa.Table:
    """A chunk's table with the facts of the engine that computed it."""
    return table.replace_schema_metadata({ENGINE_KEY: json.dumps(facts)})


def with_all_facts(table: pa.Table, chunks: Sequence[pa.Table]) -> tuple[pa.Table, list[str]]:
    """``table``, which is made of ``chunks``, with the facts of all of them; and the names of their engines."""
    found = sorted({chunk.schema.metadata[ENGINE_KEY].decode() for chunk in chunks})
    names = sorted({json.loads(facts)["engine"] for facts in found})
    return table.replace_schema_metadata({ENGINE_KEY: f"[{', '.join(found)}]"}), names
