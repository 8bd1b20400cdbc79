"""Train the small CLAP that ships beside attune-tiny, on the same captions and with the same tokenizer.

    python scripts/tiny/train_clap.py --minutes 8

Contrastive language-audio pretraining (arXiv:2211.06687) on renders, on reconstructions by the codec, and on
reconstructions with a share of their codes replaced, which is how a music model fails. Half of the captions say
how the recording sounds ("clean recording", "noisy recording", "muffled recording" ...), as captions of real
collections do, so that the embedding also carries how clean a clip is. Contrast alone learns slowly from captions that
leave much unsaid (loss 3.4 of 4.2 nats after 850 steps), so both embeddings are also asked, through the same linear
heads, what the piece is and which faults it has; the heads are thrown away. It never meets the gold judge's clips.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    EncodecModel,
)

from alignment.simulation.captions import ATTRIBUTE_VALUES
from scripts.tiny.common import BUILD, Progress, corrupt, decode_codes, load_split, save_facts
from scripts.tiny.train_decoder import TELLINGS, build_tokenizer, encode_split, tell
from scripts.tiny.train_judge import MOST_CORRUPTED


def build_clap(vocabulary: int) -> tuple[ClapModel, ClapFeatureExtractor]:
    audio = ClapAudioConfig(
        spec_size=128,
        num_mel_bins=64,
        window_size=8,
        patch_size=4,
        patch_stride=[4, 4],
        patch_embeds_hidden_size=24,
        depths=[1, 1, 2],
        num_attention_heads=[2, 4, 8],
        hidden_size=96,
        projection_dim=96,
        enable_fusion=False,
        num_classes=8,
        drop_path_rate=0.0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        qkv_bias=True,
    )
    text = ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=80,
        projection_dim=96,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=96)
    extractor = ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=16_000,
        hop_length=320,
        max_length_s=5,
        fft_window_size=1024,
        frequency_min=50,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    return ClapModel(config), extractor


def features(extractor: ClapFeatureExtractor, audio: np.ndarray) -> Tensor:
    """Log-mel input of the audio tower, (N, 1, frames, 64), half precision."""
    out = []
    for start in range(0, len(audio), 64):
        clips = [c.astype(np.float32) / 32768 for c in audio[start : start + 64]]
        out.append(extractor(clips, sampling_rate=16_000, return_tensors="pt")["input_features"].half())
    return torch.cat(out)


WORDS = {"noise": "noisy", "clipping": "distorted", "muffling": "muffled", "roughness": "rough"}


def quality_words(faults: dict[str, float], rng: np.random.Generator) -> str:
    """What half of the captions say of the recording: its strongest fault, or that it is clean."""
    if rng.random() < 0.5:
        return ""
    name, strength = max(faults.items(), key=lambda item: item[1], default=("", 0.0))
    return ", clean recording" if strength < 0.15 else f", {WORDS[name]} recording"


class Tags(nn.Module):
    """Linear heads on either embedding (B, 96): attributes of the piece, faults of the recording."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict({name: nn.Linear(width, len(v)) for name, v in ATTRIBUTE_VALUES.items()})
        self.faults = nn.Linear(width, len(WORDS))

    def forward(self, embeds: Tensor, attributes: dict[str, Tensor], faults: Tensor) -> Tensor:
        """Mean cross-entropy over the attributes plus squared errors of the faults (B, 4)."""
        embeds = 8.0 * embeds  # unit-norm; heads should not have to grow
        loss = 8.0 * F.mse_loss(torch.sigmoid(self.faults(embeds).float()), faults)
        for name, head in self.attributes.items():
            loss = loss + F.cross_entropy(head(embeds).float(), attributes[name]) / len(self.attributes)
        return loss


def contrast(out: Any) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE in nats of a ClapOutput, and how often the right caption is the nearest in the batch."""
    logits = out.logits_per_audio.float()
    target = torch.arange(len(logits))
    loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    return loss / 2, (logits.argmax(1) == target).float().mean()


def embed(clap: ClapModel, mel: Tensor, tokens: dict[str, Tensor]) -> Any:
    return clap(input_features=mel, is_longer=torch.zeros(len(mel), 1, dtype=torch.bool), **tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    audio, rows = load_split("train")
    told = tell(rows, seed=0)
    tokenizer = build_tokenizer([text for texts in told for text in texts])
    codec = EncodecModel.from_pretrained(BUILD / "codec").eval()
    audio, rows = np.asarray(audio[: args.clips]), rows[: args.clips]
    clap, extractor = build_clap(len(tokenizer))
    quarter = len(audio) // 4
    codes = encode_split(codec, "train", BUILD / "codes_train.npy")[quarter : len(audio)]  # the decoder's
    share = np.where(rng.random(len(codes)) < 0.3, 0.0, rng.uniform(0, MOST_CORRUPTED, len(codes)))
    codes = corrupt(codes, share, rng)
    cache = BUILD / "clap_mel.pt"  # a resumed run need not decode again; shares come from the seed
    if not cache.exists():
        heard = [features(extractor, audio[:quarter]), features(extractor, decode_codes(codec, codes))]
        torch.save(torch.cat(heard), cache)
    mel = torch.load(cache)
    roughness = np.concatenate([np.zeros(quarter), share / MOST_CORRUPTED])
    texts = [
        text + quality_words({**row["faults"], "roughness": rough}, rng)
        for row, rough, texts in zip(rows, roughness, told[: len(rows)], strict=True)
        for text in texts
    ]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    kinds = {
        name: torch.tensor([values.index(row["tags"][name]) for row in rows])
        for name, values in ATTRIBUTE_VALUES.items()
    }
    flaws = torch.tensor(
        [[row["faults"].get(n, rough if n == "roughness" else 0.0) for n in WORDS]
         for row, rough in zip(rows, roughness, strict=True)], dtype=torch.float32,
    )  # fmt: skip
    valid_audio, valid_rows = load_split("valid")
    valid_mel = features(extractor, np.asarray(valid_audio[:256]))
    valid_tokens = tokenizer([row["text"] for row in valid_rows[:256]], padding=True, return_tensors="pt")
    print(
        f"{sum(p.numel() for p in clap.parameters()) / 1e6:.2f} M parameters, features {tuple(mel.shape)}", flush=True
    )
    tags = Tags(clap.config.projection_dim)
    optimizer = torch.optim.AdamW([*clap.parameters(), *tags.parameters()], lr=1e-3, weight_decay=0.02)
    progress, began, step, limit = Progress(50), time.time(), 0, args.minutes * 60
    clap.train()
    while (share := (time.time() - began) / limit) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, (step + 1) / 100) * max(0.02, 0.5 * (1 + np.cos(np.pi * share)))
        pick = torch.randperm(len(mel))[:64]
        telling = pick * TELLINGS + torch.randint(TELLINGS, (64,))
        with torch.autocast("cpu", torch.bfloat16):
            out = embed(clap, mel[pick].float(), {k: tokens[k][telling] for k in ("input_ids", "attention_mask")})
            known = ({name: values[pick] for name, values in kinds.items()}, flaws[pick])
            heard, told_of = tags(out.audio_embeds, *known), tags(out.text_embeds, *known)
        loss, right = contrast(out)
        optimizer.zero_grad()
        (loss + heard + told_of).backward()
        torch.nn.utils.clip_grad_norm_(clap.parameters(), 1.0)
        optimizer.step()
        step += 1
        progress(step, loss=loss.detach(), right=right, heard=heard.detach(), told=told_of.detach())
        if step % 200 == 0:
            clap.eval()
            with torch.no_grad():
                tokens_now = {k: valid_tokens[k] for k in ("input_ids", "attention_mask")}
                value, hit = contrast(embed(clap, valid_mel.float(), tokens_now))
            clap.train()
            print(f"valid {step} loss {value:.4f} right of 256 {hit:.3f}", flush=True)
    folder = BUILD / "model" / "clap"
    clap.eval().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)
    save_facts("clap", steps=step, minutes=args.minutes, clips=len(mel), seed=args.seed)
    print(f"final step {step}", flush=True)


if __name__ == "__main__":
    main()
