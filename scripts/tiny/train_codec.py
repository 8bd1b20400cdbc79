"""Train the EnCodec of attune-tiny from nothing: 16 kHz, 50 frames a second, 4 codebooks of 512.

    python scripts/tiny/train_codec.py --minutes 27        # resumes from build/tiny/codec.pt

Residual vector quantisation with EMA codebooks and restarts of dead codes (arXiv:2107.03312, 2210.13438);
the loss is the signal-to-noise ratio, a multi-scale log-mel distance and spectral convergence (arXiv:1910.11480).
Without the waveform term training settles on a 50 Hz buzz that has the right mel bands and no pitch. EnCodec's
default convolution init shrinks the signal layer by layer until training settles on silence, so every
convolution is first rescaled to unit output deviation on real audio.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncodecConfig, EncodecModel

from scripts.tiny.common import (
    BUILD,
    SAMPLE_RATE_HZ,
    Progress,
    load_split,
    load_state,
    save_facts,
    save_state,
    to_float,
)

SEGMENT = SAMPLE_RATE_HZ // 2
CODES, BOOKS, HIDDEN = 512, 4, 64


def build_codec() -> EncodecModel:
    config = EncodecConfig(
        sampling_rate=SAMPLE_RATE_HZ,
        audio_channels=1,
        num_filters=12,
        hidden_size=HIDDEN,
        num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 2],
        codebook_size=CODES,
        codebook_dim=HIDDEN,
        target_bandwidths=[2.0],
        use_causal_conv=False,
        norm_type="weight_norm",
        normalize=False,
        chunk_length_s=None,
        overlap=None,
    )
    codec = EncodecModel(config)
    if len(codec.quantizer.layers) != BOOKS:
        raise SystemExit(f"expected {BOOKS} codebooks, the config gives {len(codec.quantizer.layers)}")
    return codec


@torch.no_grad()
def rescale_to_unit_output(codec: EncodecModel, audio: Tensor) -> None:
    """Zero each convolution's bias and scale it to unit output deviation, in the order audio meets it."""
    for half in (codec.encoder, codec.decoder):
        for module in half.modules():
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
                if module.bias is not None:
                    module.bias.zero_()

                def hook(m: nn.Module, _: object, out: Tensor) -> Tensor:
                    deviation = out.std()
                    m.parametrizations.weight.original0.div_(deviation)  # weight norm's gain
                    return out / deviation

                module.once = module.register_forward_hook(hook)
        audio = half(audio)
        for module in half.modules():
            if hasattr(module, "once"):
                module.once.remove()
                del module.once
    codec.decoder.layers[-1].conv.parametrizations.weight.original0.mul_(0.1)  # audio's level, not 1


class Quantiser(nn.Module):
    """Residual quantiser with EMA codebooks; writes into the buffers transformers reads."""

    def __init__(self, codec: EncodecModel) -> None:
        super().__init__()
        self.books = [layer.codebook for layer in codec.quantizer.layers]
        self.started = False

    @torch.no_grad()
    def start(self, latents: Tensor) -> None:
        """k-means, ten rounds, book by book on the residuals of ``latents`` (N, D)."""
        residual = latents
        for book in self.books:
            centres = residual[torch.randperm(len(residual))[:CODES]].clone()
            for _ in range(10):
                nearest = torch.cdist(residual, centres).argmin(1)
                sums = torch.zeros_like(centres).index_add_(0, nearest, residual)
                counts = torch.bincount(nearest, minlength=CODES)[:, None]
                fresh = residual[torch.randint(len(residual), (CODES,))]
                centres = torch.where(counts > 0, sums / counts.clamp_min(1), fresh)
            nearest = torch.cdist(residual, centres).argmin(1)
            book.embed.copy_(centres)
            book.cluster_size.copy_(torch.bincount(nearest, minlength=CODES).float().clamp_min(1.0))
            book.embed_avg.copy_(centres * book.cluster_size[:, None])
            residual = residual - centres[nearest]
        self.started = True

    def forward(self, latents: Tensor, decay: float = 0.99) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised (B, D, T) with a straight-through gradient, the commitment loss, and used share."""
        flat = latents.transpose(1, 2).reshape(-1, latents.shape[1])  # (N, D)
        residual, total, commit, used = flat, torch.zeros_like(flat), flat.new_zeros(()), []
        for book in self.books:
            nearest = torch.cdist(residual.detach(), book.embed).argmin(1)
            chosen = book.embed[nearest]
            commit = commit + F.mse_loss(residual, chosen)
            if self.training:
                self._update(book, residual.detach(), nearest, decay)
            used.append((book.cluster_size > 0.3).float().mean())
            total = total + chosen
            residual = residual - chosen.detach()
        quantised = (flat + (total - flat).detach()).view(latents.shape[0], latents.shape[2], -1).transpose(1, 2)
        return quantised, commit / len(self.books), torch.stack(used).mean()

    @torch.no_grad()
    def _update(self, book: nn.Module, residual: Tensor, nearest: Tensor, decay: float) -> None:
        counts = torch.bincount(nearest, minlength=CODES).float()
        sums = torch.zeros_like(book.embed).index_add_(0, nearest, residual)
        book.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
        book.embed_avg.mul_(decay).add_(sums, alpha=1 - decay)
        book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(1e-3)[:, None])
        dead = book.cluster_size < 0.1
        if dead.any():
            fresh = residual[torch.randint(len(residual), (int(dead.sum()),))]
            book.embed[dead] = fresh
            book.cluster_size[dead] = 0.5
            book.embed_avg[dead] = fresh * 0.5


class MelDistance(nn.Module):
    """Spectral distances of two batches of audio (B, N) over five window lengths."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.windows = (2048, 1024, 512, 256, 128)
        for size in self.windows:
            mels = 80 if size >= 1024 else 40 if size >= 512 else 20
            bank = mel_filter_bank(size // 2 + 1, mels, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, norm="slaney")
            self.register_buffer(f"bank_{size}", torch.tensor(bank, dtype=torch.float32))
            self.register_buffer(f"window_{size}", torch.hann_window(size))

    def magnitude(self, audio: Tensor, size: int) -> Tensor:
        spectrum = torch.stft(audio, size, size // 4, window=getattr(self, f"window_{size}"), return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square()).clamp_min(1e-8).sqrt().transpose(1, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Mean log-mel L1, and spectral convergence on linear magnitudes."""
        mel, convergence = a.new_zeros(()), a.new_zeros(())
        for size in self.windows:
            mag_a, mag_b = self.magnitude(a, size), self.magnitude(b, size)
            bank = getattr(self, f"bank_{size}")
            mel = mel + ((mag_a @ bank).clamp_min(1e-4).log() - (mag_b @ bank).clamp_min(1e-4).log()).abs().mean()
            convergence = convergence + (mag_a - mag_b).norm() / mag_b.norm()
        return mel / len(self.windows), convergence / len(self.windows)


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, (B,) (arXiv:1811.02508)."""
    estimate, target = estimate - estimate.mean(-1, True), target - target.mean(-1, True)
    scaled = (estimate * target).sum(-1, True) / target.pow(2).sum(-1, True).clamp_min(1e-8) * target
    return 10 * torch.log10(scaled.pow(2).sum(-1) / (estimate - scaled).pow(2).sum(-1).clamp_min(1e-10))


@torch.no_grad()
def _latents(codec: EncodecModel, batches: list[Tensor]) -> Tensor:
    """Latent frames (N, HIDDEN) for the codebooks to start from."""
    return torch.cat([codec.encoder(clips).transpose(1, 2).reshape(-1, HIDDEN) for clips in batches])


@torch.no_grad()
def validate(codec: EncodecModel, mel: MelDistance) -> dict[str, float]:
    audio = to_float(load_split("valid")[0][:64])[:, None]
    codec.eval()
    codes = codec.encode(audio, bandwidth=2.0).audio_codes
    back = codec.decode(codes, [None] * codes.shape[0]).audio_values[..., : audio.shape[-1]]
    codec.train()
    usage = torch.stack(
        [(torch.bincount(codes[0][:, k].flatten(), minlength=CODES) > 0).float().mean() for k in range(BOOKS)]
    )
    return {
        "si_sdr_db": float(si_sdr(back[:, 0], audio[:, 0]).mean()),
        "mel": float(mel(back[:, 0], audio[:, 0])[0]),
        **{f"used_{k}": float(u) for k, u in enumerate(usage)},
    }


def polish(codec: EncodecModel, mel: MelDistance, args: argparse.Namespace) -> None:
    """Train the decoder half alone on the finished codes: they stay valid, so a music model may learn meanwhile."""
    from scripts.tiny.train_decoder import encode_split

    path = args.checkpoint.with_name("polish.pt")
    audio, codes = load_split("train")[0], encode_split(codec, "train", BUILD / "codes_train.npy")
    hop, frames = SEGMENT // 25, 32
    for half in (codec.encoder, codec.quantizer):
        half.requires_grad_(False)
    optimizer = torch.optim.AdamW(codec.decoder.parameters(), lr=4e-4, betas=(0.8, 0.99), weight_decay=1e-4)
    step, trained = 0, 0.0
    if state := load_state(path):
        codec.decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        step, trained = state["step"], state["trained_s"]
    codec.train()
    print("before", validate(codec, mel), flush=True)
    progress, limit, began, resumed = Progress(50), args.polish * 60, time.time(), trained
    while trained < limit:
        for group in optimizer.param_groups:
            group["lr"] = 4e-4 * min(1.0, (step + 1) / 50) * max(0.05, 1 - trained / limit)
        rows, starts = torch.randint(len(audio), (args.batch,)), torch.randint(codes.shape[2] - frames, (args.batch,))
        cuts = list(zip(rows.tolist(), starts.tolist(), strict=True))
        clip = to_float(np.stack([audio[r, s * hop : (s + frames) * hop] for r, s in cuts]))
        picked = torch.from_numpy(np.stack([codes[r, :, s : s + frames] for r, s in cuts])).long()
        with torch.no_grad():
            latents = codec.quantizer.decode(picked.transpose(0, 1))
        back = codec.decoder(latents)[:, 0, : clip.shape[1]]
        # The edges lack the context that a whole clip gives them.
        inner = slice(3 * hop, -3 * hop)
        back, clip = back[:, inner], clip[:, inner]
        distance, convergence = mel(back, clip)
        noise = ((back - clip).pow(2).mean() / clip.pow(2).mean()).log()
        loss = args.snr[1] * noise + args.mel[1] * distance + convergence
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.decoder.parameters(), 3.0)
        optimizer.step()
        step += 1
        trained = resumed + time.time() - began
        progress(step, mel=distance.detach(), noise=noise.detach(), conv=convergence.detach())
        if step % 250 == 0:
            print(f"valid {step}", validate(codec, mel), flush=True)
            save_state(path, decoder=codec.decoder.state_dict(), optimizer=optimizer.state_dict(), step=step,
                       trained_s=trained)  # fmt: skip
    codec.eval()
    codec.save_pretrained(BUILD / "codec")
    save_facts("codec_polish", steps=step, minutes=round(trained / 60, 1), batch=args.batch, seed=args.seed)
    print("polished", step, f"{trained:.0f}s", validate(codec, mel), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=27.0)
    parser.add_argument("--steps", type=int, default=100_000, help="stop here at the latest; sets the schedule's end")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--snr", type=float, nargs=2, default=(4.0, 2.0), help="weight, first and at the end")
    parser.add_argument("--mel", type=float, nargs=2, default=(0.5, 1.5), help="weight, first and at the end")
    parser.add_argument("--free", type=int, default=200, help="first steps without the quantiser")
    parser.add_argument("--polish", type=float, default=0.0, help="minutes on the decoder half alone, codes fixed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=BUILD / "codec.pt")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.polish:
        return polish(EncodecModel.from_pretrained(BUILD / "codec"), MelDistance(), args)
    audio = load_split("train")[0]
    codec, mel = build_codec(), MelDistance()

    def batch(size: int) -> Tensor:
        rows = torch.randint(len(audio), (size,))
        starts = torch.randint(audio.shape[1] - SEGMENT, (size,))
        return to_float(
            np.stack([audio[r, s : s + SEGMENT] for r, s in zip(rows.tolist(), starts.tolist(), strict=True)])
        )[:, None]

    quantiser = Quantiser(codec)
    optimizer = torch.optim.AdamW(
        [*codec.encoder.parameters(), *codec.decoder.parameters()], lr=args.lr, betas=(0.8, 0.99), weight_decay=1e-4
    )
    step, trained = 0, 0.0
    if state := load_state(args.checkpoint):
        codec.load_state_dict(state["codec"])
        optimizer.load_state_dict(state["optimizer"])
        step, trained, quantiser.started = state["step"], state["trained_s"], state["step"] > args.free
    else:
        rescale_to_unit_output(codec, batch(32))
    codec.train()
    progress, limit = Progress(50), args.minutes * 60
    began, resumed = time.time(), trained

    def save() -> None:
        save_state(
            args.checkpoint, codec=codec.state_dict(), optimizer=optimizer.state_dict(), step=step, trained_s=trained
        )

    while trained < limit and step < args.steps:
        share = trained / limit
        for group in optimizer.param_groups:  # warm up, hold, then fall to a twentieth
            group["lr"] = (
                args.lr * min(1.0, (step + 1) / 100) * (1.0 if share < 0.4 else max(0.05, 1 - (share - 0.4) / 0.6))
            )
        clip = batch(args.batch)
        latents = codec.encoder(clip)
        if step < args.free:
            quantised, commit, used = latents, latents.new_zeros(()), latents.new_zeros(())
        else:
            if not quantiser.started:
                quantiser.start(_latents(codec, [batch(32) for _ in range(16)]))
            quantised, commit, used = quantiser(latents)
        back = codec.decoder(quantised)[..., :SEGMENT]
        distance, convergence = mel(back[:, 0], clip[:, 0])
        noise = ((back - clip).pow(2).mean() / clip.pow(2).mean()).log()  # minus the SNR, in nepers x 2
        late = share > 0.6  # pitch first, then the spectrum
        loss = args.snr[late] * noise + args.mel[late] * distance + convergence + 0.25 * commit
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 3.0)
        optimizer.step()
        step += 1
        trained = resumed + time.time() - began
        progress(
            step,
            mel=distance.detach(),
            noise=noise.detach(),
            conv=convergence.detach(),
            commit=commit.detach(),
            used=used,
        )
        if step % 250 == 0:
            print(f"valid {step}", validate(codec, mel), flush=True)
            save()
    save()
    codec.eval()
    codec.save_pretrained(BUILD / "codec")
    save_facts("codec", steps=step, minutes=round(trained / 60, 1), batch=args.batch, seed=args.seed)
    print("final", step, f"{trained:.0f}s", validate(codec, mel), flush=True)


if __name__ == "__main__":
    main()
