"""What TensorBoard reads of a training."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def scalars(folder: Path, name: str) -> dict[int, float]:
    """The curve ``name`` of the event files in ``folder``, by step, in float32."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.tensor_proto.float_val[0] for event in events.Tensors(name)}
