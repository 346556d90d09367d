"""The pipeline's own commands; ``egt`` mounts them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(no_args_is_help=True, help="Make small real data, and a teacher that explains them.")
model_app = typer.Typer(no_args_is_help=True, help="Make a small model.")

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Equal seeds give equal bytes.")]


@data_app.command("digits")
def digits(
    out: Folder,
    sft: Annotated[int, typer.Option(min=8, help="Pairs to fine-tune on, before the teacher's filter.")] = 8000,
    rl: Annotated[int, typer.Option(min=8, help="Pairs to probe, curate and train on.")] = 2000,
    heldout: Annotated[int, typer.Option(min=8, help="Pairs with gold labels; best a multiple of 8.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Preferences over real handwritten digits, with four known kinds of noise in the labels.

    Writes sft.jsonl, rl.jsonl, heldout.jsonl, the pictures, and truth.parquet, which says what is wrong with each label
    and which no stage is ever given.
    """
    from egt_pipeline.digits import write_digits

    counts = write_digits(out, sft=sft, rl=rl, heldout=heldout, seed=seed)
    for split, kinds in counts.items():
        print(f"{split}: {sum(kinds.values())} pairs: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    print(f"truth: {out / 'truth.parquet'}")


@data_app.command("teacher")
def teacher(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 18765,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a pod, for other pods.")] = "127.0.0.1",
) -> None:
    """A teacher for the digits on http://HOST:PORT/v1, in the protocol of OpenAI's chat completions.

    Trains its two small networks first (seconds), then answers until it is stopped.
    """
    from egt_pipeline.teacher import make_server

    print("its two networks learn; some seconds", file=sys.stderr, flush=True)
    server = make_server(port, host)
    print(f"http://{host}:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


@model_app.command("tiny")
def tiny(out: Folder, seed: Seed = 0) -> None:
    """A Qwen2.5-VL of 0.7 million random weights with its own tokenizer, chat template and image processor."""
    import warnings

    # torch looks for a GPU with a package that it finds outdated; nobody who makes a small model can mend that.
    warnings.filterwarnings("ignore", "The pynvml package", FutureWarning)
    from egt_pipeline.tiny_model import build_tiny_model

    weights = build_tiny_model(out, seed=seed)
    print(f"{out}: {weights:,} weights")
