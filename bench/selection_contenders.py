"""The contenders of bench/selection.py: ``python selection_contenders.py NAME SOURCE TARGET`` does one job, once.

Prints the CPU seconds and the peak memory in MB of the process.
"""

import sys
import time
from pathlib import Path
from typing import Any

SHARE = 0.15
KEY = ("answer_entropy_nats", "sentence_entropy_nats", "sample_id")


def ours_kept(source: Path, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from egt_pipeline.contract.recipes import CurateRecipe
    from egt_pipeline.curation import as_arrow
    from egt_pipeline.sample_scores import BATCH_ROWS, read_ids
    from egt_pipeline.stages.curate import select

    selection = select(CurateRecipe(), source)
    kept, score = selection.kept, as_arrow(selection.samples.score_N[selection.kept])
    del selection
    table = pa.Table.from_arrays([read_ids(source, kept), score], ["sample_id", KEY[0]])
    pq.write_table(table, target, compression="zstd", row_group_size=BATCH_ROWS)


def ours_table(source: Path, target: Path) -> None:
    from egt_pipeline.contract.recipes import CurateRecipe
    from egt_pipeline.stages.curate import select, write_selection

    recipe = CurateRecipe()
    write_selection(recipe, select(recipe, source), source, target)


def polars_kept(source: Path, target: Path) -> None:
    import polars as pl

    lazy = pl.scan_parquet(source).filter(pl.col("status") == "ok").select(*KEY)
    scores = lazy.select(KEY[0]).collect()[KEY[0]]
    kept = int(SHARE * len(scores))
    threshold = scores.sort()[kept - 1]
    del scores
    lazy.filter(pl.col(KEY[0]) <= threshold).collect().sort(KEY).head(kept).write_parquet(target, compression="zstd")


def polars_sort_kept(source: Path, target: Path) -> None:
    import polars as pl

    table = pl.read_parquet(source, columns=[*KEY, "status"]).filter(pl.col("status") == "ok").select(KEY)
    table.sort(KEY).head(int(SHARE * len(table))).write_parquet(target, compression="zstd")


def polars_table(source: Path, target: Path) -> None:
    import polars as pl

    table = pl.read_parquet(source, columns=["row", *KEY, "status"])
    ok = table.filter(pl.col("status") == "ok")
    kept = int(SHARE * len(ok))
    threshold = ok[KEY[0]].sort()[kept - 1]
    ordered = ok.filter(pl.col(KEY[0]) <= threshold).sort(KEY).head(kept).select("row").with_row_index("rank")
    del ok
    table.join(ordered, on="row", how="left", maintain_order="left").select(
        "row",
        "sample_id",
        pl.col("rank").cast(pl.Int64),
        pl.when(pl.col("status") == "ok").then(pl.col(KEY[0])).alias("score"),
        pl.when(pl.col("rank").is_null()).then(pl.lit("dropped")).otherwise(pl.lit("kept")).alias("decision"),
    ).write_parquet(target, compression="zstd")


KEPT_SQL = f"(SELECT floor({SHARE} * count(*))::BIGINT FROM ok)"
ORDER_SQL = f"ORDER BY {', '.join(KEY)} LIMIT {KEPT_SQL}"


def duckdb_kept(source: Path, target: Path) -> None:
    threshold = f"(SELECT quantile_disc({KEY[0]}, {SHARE}) FROM ok)"
    _duckdb(source, f"SELECT sample_id, {KEY[0]} FROM ok WHERE {KEY[0]} <= {threshold} {ORDER_SQL}", target)


def duckdb_sort_kept(source: Path, target: Path) -> None:
    _duckdb(source, f"SELECT sample_id, {KEY[0]} FROM ok {ORDER_SQL}", target)


def duckdb_table(source: Path, target: Path) -> None:
    first = f"SELECT row, {', '.join(KEY)} FROM ok {ORDER_SQL}"
    ranked = f"SELECT row, row_number() OVER (ORDER BY {', '.join(KEY)}) - 1 AS rank FROM ({first})"
    columns = (
        f"row, sample_id, rank, CASE WHEN status = 'ok' THEN {KEY[0]} END AS score,"
        " CASE WHEN rank IS NULL THEN 'dropped' ELSE 'kept' END AS decision"
    )
    everything = f"SELECT {columns} FROM read_parquet('{source}') LEFT JOIN ({ranked}) USING (row) ORDER BY row"
    _duckdb(source, everything, target)


def _duckdb(source: Path, query: str, target: Path) -> None:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"CREATE VIEW ok AS SELECT * FROM read_parquet('{source}') WHERE status = 'ok'")
    connection.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")


def pyarrow_kept(source: Path, target: Path) -> None:
    """One column for the threshold, then the rows below it row group by row group: the leanest way we know of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _pyarrow_lowest(source)
    pq.write_table(pa.table(table.select(["sample_id", KEY[0]])), target, compression="zstd")


def _pyarrow_lowest(source: Path) -> Any:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    column = file.read(columns=[KEY[0], "status"])
    scores = column.filter(pc.equal(column["status"], "ok"))[KEY[0]].to_numpy()
    del column
    kept = int(SHARE * len(scores))
    threshold = np.partition(scores, kept - 1)[kept - 1]
    del scores
    parts = []
    for group in range(file.num_row_groups):
        part = file.read_row_group(group, columns=["row", *KEY, "status"])
        below = pc.and_(pc.equal(part["status"], "ok"), pc.less_equal(part[KEY[0]], threshold))
        parts.append(part.filter(below).drop_columns(["status"]))
    lowest = pa.concat_tables(parts)
    return lowest.take(pc.sort_indices(lowest, sort_keys=[(name, "ascending") for name in KEY])).slice(0, kept)


def pyarrow_table(source: Path, target: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source)
    lowest = _pyarrow_lowest(source)["row"].to_numpy()
    rank = np.full(file.metadata.num_rows, -1)
    rank[lowest] = np.arange(len(lowest))
    writer = None
    for group in range(file.num_row_groups):
        part = file.read_row_group(group, columns=["row", "sample_id", KEY[0], "status"])
        here = pa.array(rank[part["row"].to_numpy()])
        kept = pc.greater_equal(here, 0)
        columns = {
            "row": part["row"],
            "sample_id": part["sample_id"],
            "rank": pc.if_else(kept, here, None),
            "score": pc.if_else(pc.equal(part["status"], "ok"), part[KEY[0]], None),
            "decision": pc.if_else(kept, "kept", "dropped"),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(target, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def pyarrow_sort_kept(source: Path, target: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(source, columns=[*KEY, "status"], filters=[("status", "=", "ok")])
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in KEY])
    pq.write_table(table.take(order.slice(0, int(SHARE * len(table)))), target, compression="zstd")


def pandas_kept(source: Path, target: Path) -> None:
    table = _pandas_lowest(source)
    table[["sample_id", KEY[0]]].to_parquet(target, compression="zstd", index=False)


def _pandas_lowest(source: Path) -> Any:
    import pandas as pd

    table = pd.read_parquet(source, columns=["row", *KEY, "status"])
    table = table[table["status"] == "ok"].drop(columns="status")
    kept = int(SHARE * len(table))
    threshold = table[KEY[0]].nsmallest(kept).iloc[-1]
    return table[table[KEY[0]] <= threshold].sort_values(list(KEY)).head(kept)


def pandas_table(source: Path, target: Path) -> None:
    import pandas as pd

    lowest = _pandas_lowest(source)["row"].reset_index(drop=True)
    table = pd.read_parquet(source, columns=["row", "sample_id", KEY[0], "status"])
    table["rank"] = pd.Series(lowest.index, index=lowest.to_numpy()).reindex(table["row"]).astype("Int64").to_numpy()
    table["score"] = table[KEY[0]].where(table["status"] == "ok")
    table["decision"] = table["rank"].isna().map({True: "dropped", False: "kept"})
    table[["row", "sample_id", "rank", "score", "decision"]].to_parquet(target, compression="zstd", index=False)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    # Not ru_maxrss, which starts from the memory of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(time.process_time(), int(peak.split()[1]) / 1024)
