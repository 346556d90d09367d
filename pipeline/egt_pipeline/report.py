"""A run as one HTML page: what ran, whether entropies mean anything, what was kept, and what came of it.

The page needs nothing but itself. Every figure and table names the artifact it was read from, as ``stage/digest/file``.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from egt_pipeline import report_figures
from egt_pipeline import report_findings as findings
from egt_pipeline.contract.graph import STAGES, StageName
from egt_pipeline.contract.recipes import CurateRecipe
from egt_pipeline.contract.task import Manifest
from egt_pipeline.metrics import Proportion, accuracy, accuracy_by_bin, equal_frequency_bins
from egt_pipeline.preferences import STATUS_OK, Images
from egt_pipeline.report_data import Probed, Run

_EXAMPLES = 8
_PICTURE_PIXELS = 160  # of an example's longer side: large enough to judge, small enough for one page
_SCORES = {
    "answer": "answer entropy (nats)",
    "sentence": "sentence entropy (nats)",
    "mix": "answer x sentence entropy (nats²)",
}


def build_report(
    manifests: Mapping[StageName, Manifest], folders: Mapping[StageName, Path], truth: Path | None, title: str
) -> str:
    """The page. ``folders`` hold the files of the published stages; ``truth`` is the known noise, if there is any.

    A stage that is not published has no part of its own, and the page says so.
    """
    run = Run(manifests, folders, truth)
    return page("report.html.j2").render(
        title=title,
        run=run,
        stages=[manifests[stage.name] for stage in STAGES if stage.name in manifests],
        absent=[str(stage.name) for stage in STAGES if stage.name not in manifests],
        unread=[str(name) for name in (StageName.PREPARE, StageName.PROBE, StageName.CURATE) if name not in manifests],
        source=run.source,
        **_training(run),
        **_selection(run),
    )


def page(name: str) -> jinja2.Template:
    """A template of this package, with the filters that pages share."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("egt_pipeline", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "interval": _interval}
    return environment.get_template(name)


def _training(run: Run) -> dict[str, Any]:
    """The curves of SFT and RL, and how each model does on held-out samples."""
    losses, steps = run.table(StageName.SFT, "losses.parquet"), run.table(StageName.RL, "losses.parquet")
    predictions = run.table(StageName.EVALUATE, "predictions.parquet")
    found = [] if predictions is None else [_model(predictions, name) for name in ("sft", "final")]
    models = [model for model in found if model is not None]
    curve = None
    if steps is not None:
        bias = [model["bias"] for model in models]
        names, gold = [model["name"] for model in models], [model["accuracy"] for model in models]
        by_step = (_column(steps, name) for name in ("step", "reward", "entropy_nats"))
        curve = report_figures.rewards(*by_step, models=names, gold=gold, bias=bias)
    return {
        "loss_curve": None
        if losses is None
        else Markup(report_figures.losses(_column(losses, "step"), _column(losses, "loss"))),
        "reward_curve": None if curve is None else Markup(curve),
        "reward_ends": None if steps is None else _ends(_column(steps, "reward")),
        "models": models,
        "trained": _trained(run),
    }


def _trained(run: Run) -> dict[str, int] | None:
    """How many of the kept samples the optimiser saw, as it wrote their ids down itself."""
    order, selection = run.table(StageName.RL, "order.parquet"), run.table(StageName.CURATE, "selection.parquet")
    if order is None or selection is None:
        return None
    kept = selection.filter(pc.equal(selection["decision"], "kept"))["sample_id"]
    seen = pc.unique(order["sample_id"])
    return {
        "seen": int(pc.sum(pc.is_in(kept, value_set=seen)).as_py()),
        "kept": len(kept),
        "others": len(seen) - int(pc.sum(pc.is_in(seen, value_set=kept)).as_py()),
        "steps": len(pc.unique(order["step"])),
        "epochs": len(pc.unique(order["epoch"])),
    }


def _model(predictions: pa.Table, name: str) -> dict[str, Any] | None:
    """Accuracies of one model: overall, by subset, by group and by position, and its style-bias index."""
    rows = predictions.filter(pc.equal(predictions["model"], name))
    if not len(rows):
        return None
    parts = {
        f"{column} {value}": accuracy(_correct(rows, column, value))
        for column in ("subset", "group", "label")
        for value in sorted({value for value in rows[column].to_pylist() if value is not None})
    }
    word, digit = parts.get("group word"), parts.get("group digit")
    answered = rows.filter(pc.equal(rows["status"], STATUS_OK))["predicted"]
    return {
        "name": name,
        "answered_1": float(np.mean(answered.to_numpy() == 1)) if len(answered) else float("nan"),
        "accuracy": accuracy(rows["correct"].fill_null(False).to_numpy()),
        "parts": {key.replace("label", "better answer at position"): value for key, value in parts.items()},
        "clear": parts.get("subset clear"),
        "bias": word.share - digit.share if word and digit else None,
    }


def _correct(rows: pa.Table, column: str, value: object) -> np.ndarray:
    chosen = rows.filter(pc.equal(rows[column], value))
    return np.asarray(chosen["correct"].fill_null(False).to_numpy(), bool)


def _selection(run: Run) -> dict[str, Any]:
    """Gate, histogram, bins, what-if table, examples and known noise; all None before curate is published."""
    probed = run.probed
    if probed is None:
        return dict.fromkeys(("probed", "checks", "verdict", "cuts", "figures", "shares", "examples", "noise", "rules"))
    recipe = CurateRecipe.model_validate(run.manifests[StageName.CURATE].recipe)
    sft = _training_clear(run)
    checks = findings.gate(probed, sft)
    cuts = findings.cuts(probed, recipe)
    return {
        "probed": probed,
        "checks": checks,
        "verdict": findings.verdict(checks),
        "cuts": cuts,
        "figures": {name: Markup(svg) for name, svg in _figures(probed, recipe, list(cuts.values())).items()},
        "shares": findings.what_if(probed, recipe),
        "examples": {
            name: list(_examples(run, probed, at)) for name, at in findings.examples(probed, _EXAMPLES).items()
        },
        "noise": findings.recovery(probed),
        "rules": findings.disagreements(probed),
    }


def _training_clear(run: Run) -> Proportion | None:
    """Accuracy of the SFT model, the one that was probed, on clear held-out samples."""
    predictions = run.table(StageName.EVALUATE, "predictions.parquet")
    model = None if predictions is None else _model(predictions, "sft")
    return None if model is None else model["clear"]


def _figures(probed: Probed, recipe: CurateRecipe, cuts: list[float]) -> dict[str, str]:
    ranked = probed.ranked
    answer, sentence, agrees = probed.answer_N[ranked], probed.sentence_N[ranked], probed.agrees[ranked]
    label = f"{recipe.baseline} baseline" if recipe.baseline else _SCORES[recipe.score]
    predicted = probed.predicted_N[ranked]
    shares = [float(np.mean(predicted[part] == 1)) for part in equal_frequency_bins(answer, findings.BINS) if len(part)]
    return {
        "histogram": report_figures.histogram(probed.score_N[ranked], probed.kept_N[ranked], cuts, label),
        "answer": report_figures.accuracy_bins(
            "answer", accuracy_by_bin(answer, agrees, findings.BINS), "answer entropy"
        ),
        "sentence": report_figures.accuracy_bins(
            "sentence", accuracy_by_bin(sentence, agrees, findings.BINS), "sentence entropy"
        ),
        "predicted": report_figures.predicted_bins(shares),
    }


def _examples(run: Run, probed: Probed, positions: list[int]) -> Iterator[dict[str, Any]]:
    folder = run.folders[StageName.PREPARE] / "rl"
    images = Images(folder)
    table = run.preferences
    if table is None:
        return
    places = {name: place for place, name in enumerate(table["sample_id"].to_pylist())}
    for position in positions:
        row = table.slice(places[probed.ids[position]], 1).to_pylist()[0]
        yield {
            "row": row,
            "pictures": [_picture(images[name]) for name in row["images"]],
            "p": probed.p_N2[position].tolist(),
            "answer": float(probed.answer_N[position]),
            "predicted": int(probed.predicted_N[position]),
            "kept": bool(probed.kept_N[position]),
            "response": probed.response[position] or "",
            "kind": str(probed.kind[position]),
        }


def _picture(data: bytes) -> str:
    """The picture as a data URI, decoded and written anew: of the tenant's file only pixels get into the page."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB")
    small.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    png = io.BytesIO()
    small.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Means over the first and the last tenth."""
    part = max(1, len(values) // 10)
    return float(values[:part].mean()), float(values[-part:].mean())


def _percent(value: float | None) -> str:
    return "n/a" if value is None or np.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def _interval(found: Proportion | None) -> str:
    """A share with its 95 % interval."""
    if found is None or not found.count:
        return "n/a"
    return f"{100 * found.share:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f}, n = {found.count})"
