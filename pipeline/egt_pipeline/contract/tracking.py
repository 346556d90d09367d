"""Where the figures of a training are shown while it goes on, besides TensorBoard's files."""

from typing import Literal, Self

from pydantic import Field, model_validator

from egt_pipeline.contract.base import Recipe


class Tracking(Recipe):
    """A service that is sent the figures of sft and rl, one run an attempt, named <run>-<stage>-a<attempt>."""

    service: Literal["wandb", "mlflow", "trackio"]
    """Weights & Biases, MLflow or trackio."""
    project: str = Field(default="egt", min_length=1, max_length=128)
    """The service's project, which MLflow calls an experiment."""
    address: str | None = Field(default=None, min_length=1, max_length=1024)
    """URL of the W&B or MLflow server, or trackio's Hugging Face Space; null: W&B's own, the others have none."""
    offline: bool = False
    """true: nothing is sent; the service's own files lie in the artifact's tracking/, to be brought to it later."""
    api_key_secret: str | None = Field(default=None, max_length=253)
    """In a cluster: the Secret of the run's namespace that holds WANDB_API_KEY, MLFLOW_TRACKING_TOKEN or HF_TOKEN."""

    @property
    def key_variable(self) -> str:
        """The environment variable that the service's client reads its key from."""
        return {"wandb": "WANDB_API_KEY", "mlflow": "MLFLOW_TRACKING_TOKEN", "trackio": "HF_TOKEN"}[self.service]

    @model_validator(mode="after")
    def _has_somewhere_to_go(self) -> Self:
        if self.service != "wandb" and not self.offline and self.address is None:
            raise ValueError(f"address: is missing; {self.service} needs it, or offline: true")
        if self.offline and self.address is not None:
            raise ValueError(f"address: {self.address!r} is not accepted with offline: true, which sends nothing")
        return self
