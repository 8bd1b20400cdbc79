"""What each automatic metric is called, its unit, which way is better, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricWords:
    """``better`` is None where neither way is: level, onsets and pitch classes are there to be seen to change."""

    label: str
    unit: str
    definition: str
    better: Literal["higher", "lower"] | None = None


METRICS: dict[str, MetricWords] = {
    "clap_score": MetricWords(
        "CLAP score", "", "cosine of the clip's and its prompt's CLAP embeddings, in −1 to 1", "higher"
    ),
    "fad": MetricWords(
        "FAD", "", "Fréchet distance of CLAP embeddings to the reference; falls with more clips, so only equal n "
        "compare", "lower",
    ),
    "kernel_distance": MetricWords(
        "Kernel distance", "", "squared MMD of CLAP embeddings to the reference, KID's kernel, without bias: 0 for "
        "equal sources", "lower",
    ),
    "reward_preference": MetricWords(
        "Preference reward", "logits", "what the reward model expects listeners to prefer; only differences say "
        "something", "higher",
    ),
    "reward_text_adherence": MetricWords(
        "Text-adherence reward", "logits", "the reward model's head for following the prompt", "higher"
    ),
    "reward_quality": MetricWords("Quality reward", "logits", "the reward model's head for quality", "higher"),
    "kl": MetricWords("KL to base", "nats a clip", "how far the version has moved from its own base, on its own clips"),
    "diversity": MetricWords(
        "Diversity", "", "mean cosine distance in CLAP space between two clips of one prompt; 0: always the same",
        "higher",
    ),
    "duplicates": MetricWords(
        "Duplicates", "", "share of clips with the first-codebook codes of another one in over half of all frames",
        "lower",
    ),
    "nearest_training": MetricWords(
        "Nearest training clip", "", "mean cosine distance in CLAP space to the nearest clip that was voted on in "
        "training; far below the base's: learnt by heart", "higher",
    ),
    "copied": MetricWords(
        "Copied", "", "share of clips with the first-codebook codes of a training clip in over half of all frames",
        "lower",
    ),
    "level_lufs": MetricWords("Level", "LUFS", "integrated loudness (BS.1770), silence at −70"),
    "silence": MetricWords("Silence", "", "share of 20 ms below −60 dBFS", "lower"),
    "clipping": MetricWords("Clipping", "", "share of samples at full scale", "lower"),
    "onset_rate_hz": MetricWords("Onset rate", "a second", "peaks of the spectral flux"),
    "pitch_class_entropy_bits": MetricWords(
        "Pitch-class entropy", "bits", "0: one note, or silence; 3.58: all twelve classes alike"
    ),
}  # fmt: skip


def words_of(metric: str) -> MetricWords:
    """The words of a metric; its bare name for one that is not known here."""
    return METRICS.get(metric, MetricWords(metric, "", ""))
