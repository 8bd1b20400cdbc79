"""Train attune-tiny's text encoder and delay-pattern decoder from nothing on codes of the trained codec.

    python scripts/tiny/train_decoder.py --minutes 52      # resumes from build/tiny/decoder.pt

MusicGen as published (arXiv:2306.05284): T5 text encoder, cross-attention, the codebooks in the delay pattern,
one cross-entropy over all books. A fifth of the captions is dropped, so that guidance means something, and every
clip is told in several captions drawn from what it is. Text encoder and decoder learn together; matrices inside
the layers by Muon (K. Jordan et al. 2024, as in torch.optim), everything else by AdamW.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
)

from alignment.simulation.captions import Attributes, draw_asked, is_reserved, write_caption
from scripts.tiny.common import BUILD, Progress, load_split, load_state, save_facts, save_state, to_float
from scripts.tiny.train_codec import BOOKS, CODES

PAD = CODES  # the codec has codes 0..511
LAYERS, WIDTH = 4, 192
TELLINGS = 6  # captions a clip


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A lower-case BPE tokenizer of at most 600 entries with T5's conventions (pad 0, end 1, unknown 2)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,-'")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def build_model(codec: EncodecModel, vocabulary: int) -> MusicgenForConditionalGeneration:
    text = T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=PAD,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=3,
        ffn_dim=4 * WIDTH,
        num_codebooks=BOOKS,
        audio_channels=1,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        max_position_embeddings=2048,
        pad_token_id=PAD,
        bos_token_id=PAD,
    )
    config = MusicgenConfig(
        text_encoder=text.to_dict(), audio_encoder=codec.config.to_dict(), decoder=decoder.to_dict()
    )
    model = MusicgenForConditionalGeneration(config)
    model.audio_encoder.load_state_dict(codec.state_dict())
    model.audio_encoder.requires_grad_(False)
    for generation in (model.generation_config, model.decoder.generation_config):
        generation.decoder_start_token_id = PAD
        generation.pad_token_id = generation.bos_token_id = PAD
        generation.do_sample, generation.guidance_scale, generation.max_length = True, 3.0, 250 + BOOKS - 1
    return model


def tell(rows: list[dict[str, Any]], seed: int) -> list[list[str]]:
    """TELLINGS captions of each clip: its own, and others drawn from its attributes, none of them reserved."""
    rng = random.Random(seed)
    out = []
    for row in rows:
        attributes, texts = Attributes(**row["tags"]), [row["text"]]
        while len(texts) < TELLINGS:
            text = write_caption(draw_asked(attributes, rng), rng)
            if not is_reserved(text):
                texts.append(text)
        out.append(texts)
    return out


@torch.no_grad()
def encode_split(codec: EncodecModel, split: str, path: Path) -> np.ndarray:
    """Codes (N, K, T) int16 of a whole split, kept on disk."""
    if path.exists():
        return np.load(path)
    audio, _ = load_split(split)
    out = []
    for start in range(0, len(audio), 32):
        clip = to_float(audio[start : start + 32])[:, None]
        out.append(codec.encode(clip, bandwidth=2.0).audio_codes[0].to(torch.int16).numpy())
    codes = np.concatenate(out)
    np.save(path, codes)
    print(f"{split}: codes {codes.shape}", flush=True)
    return codes


def delayed(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (B*K, S) and targets (B, K, S), S = T + K - 1; target -100 where book k has no code."""
    batch, books, frames = codes.shape
    steps = frames + books - 1
    targets = torch.full((batch, books, steps), -100, dtype=torch.long)
    for book in range(books):
        targets[:, book, book : book + frames] = codes[:, book]
    inputs = torch.full((batch, books, steps), PAD, dtype=torch.long)
    inputs[:, :, 1:] = targets[:, :, :-1]
    return inputs.masked_fill(inputs < 0, PAD).view(batch * books, steps), targets


def loss_by_book(
    model: MusicgenForConditionalGeneration, tokens: dict[str, Tensor], codes: Tensor, keep: Tensor
) -> Tensor:
    """Mean cross-entropy a code in nats, (K,); ``keep`` (B,) False drops the caption as guidance does."""
    inputs, targets = delayed(codes)
    mask = tokens["attention_mask"] * keep[:, None]
    logits = model(input_ids=tokens["input_ids"], attention_mask=mask, decoder_input_ids=inputs).logits
    logits = logits.view(codes.shape[0], codes.shape[1], -1, logits.shape[-1])  # (B, K, S, V)
    each = nn.functional.cross_entropy(
        logits.float().flatten(0, 2), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return each.view(codes.shape[0], codes.shape[1], -1).sum((0, 2)) / (codes.shape[0] * codes.shape[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=52.0)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--short", type=float, default=0.35, help="share of the time on half-length stretches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=BUILD / "decoder.pt")
    parser.add_argument("--init", type=Path, help="a model of this shape to start from, without a checkpoint")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    codec = EncodecModel.from_pretrained(BUILD / "codec").eval()
    codes = torch.from_numpy(encode_split(codec, "train", BUILD / "codes_train.npy"))
    valid = torch.from_numpy(encode_split(codec, "valid", BUILD / "codes_valid.npy"))
    told = tell(load_split("train")[1], args.seed)
    texts = [text for texts in told for text in texts]
    valid_texts = [row["text"] for row in load_split("valid")[1]]
    tokenizer = build_tokenizer(texts)
    model = build_model(codec, len(tokenizer))
    trainable = [p for p in model.parameters() if p.requires_grad]
    print(
        f"{sum(p.numel() for p in trainable) / 1e6:.2f} M trained parameters, vocabulary {len(tokenizer)}", flush=True
    )
    inside = [p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 2 and ".layers." in name]
    known = {id(p) for p in inside}
    optimizers = [
        torch.optim.Muon(inside, lr=args.lr, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [p for p in trainable if id(p) not in known], lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05
        ),
    ]
    step, trained = 0, 0.0
    if args.init and not args.checkpoint.exists():
        model.load_state_dict(MusicgenForConditionalGeneration.from_pretrained(args.init).float().state_dict())
    if state := load_state(args.checkpoint):
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, trained = state["step"], state["trained_s"]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    valid_tokens = tokenizer(valid_texts, padding=True, return_tensors="pt")
    progress, limit, began, resumed = Progress(50), args.minutes * 60, time.time(), trained

    def save() -> None:
        kept = [optimizer.state_dict() for optimizer in optimizers]
        save_state(args.checkpoint, model=model.state_dict(), optimizers=kept, step=step, trained_s=trained)

    model.train()
    model.audio_encoder.eval()
    while trained < limit:
        share = trained / limit
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            # Warm up over 200 steps, then a cosine to a fiftieth.
            group["lr"] = args.lr * min(1.0, (step + 1) / 200) * max(0.02, 0.5 * (1 + np.cos(np.pi * share)))
        # First on short stretches from anywhere, twice as many: captions are learnt a clip at a time.
        short = share < args.short
        size = args.batch * 2 if short else args.batch
        rows = torch.randint(len(codes), (size,))
        start = int(torch.randint(codes.shape[-1] // 2 + 1, (1,))) if short else 0
        clip = codes[rows][..., start : start + codes.shape[-1] // 2] if short else codes[rows]
        keep = (torch.rand(size) > 0.2).long()
        telling = rows * TELLINGS + torch.randint(TELLINGS, (size,))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            books = loss_by_book(
                model, {k: tokens[k][telling] for k in ("input_ids", "attention_mask")}, clip.long(), keep
            )
        model.zero_grad()
        books.mean().backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        trained = resumed + time.time() - began
        progress(step, loss=books.mean().detach(), book0=books[0].detach(), book_last=books[-1].detach())
        if step % 250 == 0:
            with torch.no_grad():
                part = {k: valid_tokens[k][:64] for k in ("input_ids", "attention_mask")}
                with_text = loss_by_book(model, part, valid[:64].long(), torch.ones(64).long()).mean()
                without = loss_by_book(model, part, valid[:64].long(), torch.zeros(64).long()).mean()
            print(f"valid {step} loss {with_text:.4f} without caption {without:.4f}", flush=True)
            save()
    save()
    model.audio_encoder.load_state_dict(EncodecModel.from_pretrained(BUILD / "codec").state_dict())  # as polished
    model.eval().half().save_pretrained(BUILD / "model")
    tokenizer.save_pretrained(BUILD / "model")
    begun = {} if args.init is None else {"begun_from": "the second attune-tiny"}
    save_facts("decoder", steps=step, minutes=round(trained / 60, 1), batch=args.batch, seed=args.seed, **begun)
    print(f"final step {step} {trained:.0f}s", flush=True)


if __name__ == "__main__":
    main()
