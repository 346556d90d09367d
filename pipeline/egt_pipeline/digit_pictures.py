"""Pictures of the demo: scikit-learn's 8 x 8 digits, enlarged and degraded, and networks that read them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 28  # pixels: four patches of 14, one token of Qwen2.5-VL
_SPLIT_SEED = 1234  # fixed: no picture of the held-out split is ever seen by training, whatever the data seed
_SPLIT_SIZES = {"sft": 1000, "rl": 400, "heldout": 397}
_NOISE_SIDE = 7  # noise as coarse as the strokes


@cache
def _digits() -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


@cache
def picture_split() -> dict[str, NDArray[np.int64]]:
    """The indices of the source pictures of each split; no picture is in two."""
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(_digits()[0]))
    ends = np.cumsum(list(_SPLIT_SIZES.values()))[:-1]
    return dict(zip(_SPLIT_SIZES, np.split(order, ends), strict=True))


def degradation_of(rng: np.random.Generator) -> float:
    """A strength of degradation, uniform in 0..1."""
    return float(rng.uniform(0, 1))


def render(source: int, strength: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture, shifted by up to two pixels; less contrast, an occluding square and coarse noise by ``strength``."""
    from PIL import Image

    image = Image.fromarray((_digits()[0][source] / 16 * 255).astype(np.uint8))
    picture = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    picture = np.roll(picture, tuple(int(rng.integers(-2, 3)) for _ in range(2)), (0, 1))
    if strength > 0:
        picture = picture * (1 - 0.6 * strength)
        width = round(SIDE * 0.6 * strength)
        x, y = rng.integers(0, SIDE - width + 1, 2)
        picture[y : y + width, x : x + width] = 0.3
        noise = rng.normal(0, 0.45 * strength, (_NOISE_SIDE, _NOISE_SIDE)).astype(np.float32)
        picture = picture + np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a grey picture as an RGB PNG."""
    from PIL import Image

    Image.fromarray(picture).convert("RGB").save(path)


@dataclass(frozen=True)
class Reader:
    """A network that reads digits; it sees every second pixel."""

    network: Any

    @staticmethod
    def digit_of(source: int) -> int:
        """The true digit of a source picture."""
        return int(_digits()[1][source])

    @staticmethod
    def train(sources: NDArray[np.int64], *, hidden: tuple[int, ...], renderings: int, seed: int) -> "Reader":
        """A reader trained on ``renderings`` degraded pictures of each source."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        rng = np.random.default_rng(seed)
        many = np.tile(sources, renderings)
        pictures = [render(source, degradation_of(rng), rng) for source in many]
        network = MLPClassifier(
            hidden, alpha=1e-2, batch_size=128, learning_rate_init=2e-3, max_iter=12, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early on purpose: it is to be imperfect
            network.fit(_features(pictures), [Reader.digit_of(source) for source in many])
        return Reader(network)

    def probabilities(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """The probability of each of the ten digits, for each picture."""
        if not pictures:
            return np.zeros((0, 10))
        result: NDArray[np.float64] = self.network.predict_proba(_features(pictures))
        return result


def _features(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    return np.stack([picture[::2, ::2].ravel() / 255.0 for picture in pictures])
