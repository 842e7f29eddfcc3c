"""Train the U-Net and the text encoder together on the encoded scenes, epsilon prediction, min-SNR weights, EMA.

The step size is constant and falls to zero over the last part of the time, so the result is annealed when the time
is up, however fast the machine is. Run again with the same folder to continue from its last state with a new
schedule, also with more concepts or more encoded scenes: token vectors are kept by token id.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime
from pathlib import Path

import torch
from parallel import Workers
from torch import Tensor, nn

from loraloom.diffusion.objectives import add_noise, min_snr_weights
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.models.conditioning import tokenise
from loraloom.models.layouts import UNetSizes, clip_layout, random_tensors, unet_layout
from loraloom.models.text_encoders import ClipTextEncoder
from loraloom.models.tokenizer import BOS, EOS, VOCABULARY_SIZE, clip_tokenizer
from loraloom.models.unet import UNet, eight_heads
from loraloom.randomness import generator
from loraloom.studio.embedded import token_vectors

TEXT_WIDTH, TEXT_LAYERS = 128, 4
SIZES = UNetSizes(32, (1, 2, 3, 3), (1, 1, 1, 0), middle_depth=1, context=TEXT_WIDTH)
BATCH, PEAK_RATE, WARMUP, GAMMA, EMA = 8, 1e-3, 150, 5.0, 0.997
NO_CAPTION, STRANGE_WORDS = 0.1, 0.12
_TOKENS = "embeddings.token_embedding.weight"


def new_unet(seed: int = 0) -> UNet:
    """A U-Net of random weights whose branches all start at zero."""
    shapes = dict(unet_layout(SIZES))
    unet = UNet.from_shapes(shapes, heads_rule=eight_heads)
    unet.load_state_dict(_start(shapes, "unet", seed, zeros=("out_layers.3.weight", "proj_out.weight", "out.2.weight")))
    return unet


def new_text_encoder(seed: int = 0) -> ClipTextEncoder:
    """A CLIP text model that tells texts apart from the start.

    With random layers the U-Net learns to ignore the text before the text says anything, and the text encoder then
    collapses to a constant. So all layers begin as nothing but the first one's attention: there every place, and so
    the many end tokens that fill up a text, takes the mean of the tokens unlike itself, which is the text's words.
    """
    shapes = dict(clip_layout(TEXT_WIDTH, TEXT_LAYERS))
    encoder = ClipTextEncoder.from_shapes(shapes)
    weights = _start(shapes, "text", seed, zeros=("out_proj.weight", "fc2.weight"))
    del weights["embeddings.position_ids"]
    weights[_TOKENS] = token_vectors(TEXT_WIDTH)
    weights["embeddings.position_embedding.weight"] *= 0.2
    for name, scale in {"q_proj": 0.8, "k_proj": -0.8, "v_proj": 1.0, "out_proj": 0.7}.items():
        weights[f"encoder.layers.0.self_attn.{name}.weight"] = scale * torch.eye(TEXT_WIDTH)
    encoder.load_state_dict(weights)
    return encoder


def _start(shapes: dict[str, tuple[int, ...]], part: str, seed: int, *, zeros: tuple[str, ...]) -> dict[str, Tensor]:
    weights = random_tensors({"": iter(shapes.items())}, part, seed, dtype=torch.float32)
    for name, weight in weights.items():
        if name.endswith("bias") or name.endswith(zeros):
            weight.zero_()
        elif weight.ndim == 1:
            weight.fill_(1.0)
        elif "embedding" not in name:
            weight *= 0.6
    return weights


class Scenes:
    """Encoded scenes with their captions as token ids."""

    def __init__(self, folder: Path, last_stage: int) -> None:
        parts = [torch.load(path, weights_only=True) for path in sorted(folder.glob("[0-9]*.pt"))]
        chosen = torch.cat([part["stages"] for part in parts]) <= last_stage
        self.latents = torch.cat([part["latents"] for part in parts])[chosen]
        every = [caption for part in parts for caption in json.loads(part["captions"])]
        captions = [caption for caption, is_chosen in zip(every, chosen, strict=True) if is_chosen]
        self._tokenizer = clip_tokenizer()
        known: dict[str, list[int]] = {}
        for caption in captions:
            if caption not in known:
                known[caption] = self._tokenizer.encode(caption)
        self.tokens = [known[caption] for caption in captions]
        self.comma = self._tokenizer.encode(",")
        self.empty = list(tokenise("", self._tokenizer)[0].ids)

    def used_ids(self) -> list[int]:
        """Token ids whose vectors are trained."""
        return sorted({BOS, EOS, *self.comma, *(token for tokens in self.tokens for token in tokens)})

    def batch(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random latents (BATCH, 4, 16, 16) and ids (BATCH, 77)."""
        chosen = torch.randint(len(self.tokens), (BATCH,), generator=draw)
        chances = torch.rand(BATCH, generator=draw)
        ids = [
            self._ids(self.tokens[index], float(chance), draw) for index, chance in zip(chosen, chances, strict=True)
        ]
        return self.latents[chosen].float(), torch.tensor(ids)

    def _ids(self, tokens: list[int], chance: float, draw: torch.Generator) -> list[int]:
        if chance < NO_CAPTION:
            return self.empty
        if chance < NO_CAPTION + STRANGE_WORDS:
            # One to three random words that mean nothing, before or behind, so that unknown words change nothing.
            words = torch.randint(BOS, (1 + int(torch.randint(3, (1,), generator=draw)),), generator=draw).tolist()
            before = chance < NO_CAPTION + 0.75 * STRANGE_WORDS
            tokens = [*words, *self.comma, *tokens] if before else [*tokens, *self.comma, *words]
        return [BOS, *tokens, *[EOS] * (76 - len(tokens))]


def loss_weights(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Weights of squared errors of the noise: min-SNR, lifted where there is little but noise.

    There the error of the noise is small whatever the image, yet it is there that the text decides what comes: without
    the lift a short training does not learn to listen. So all levels of noise add about the same to the loss.
    """
    lift = (0.25 / schedule.snr(timesteps)).clamp_max(20.0)
    return min_snr_weights(schedule, "epsilon", timesteps, GAMMA) + lift


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--until", required=True, help="local time HH:MM at which the training is to be annealed")
    parser.add_argument("--anneal", type=float, default=0.45, help="share of the time in which the step size falls")
    parser.add_argument("--stage", type=int, default=2, help="leave out things of later stages (concepts.tsv)")
    parser.add_argument("--rate", type=float, default=PEAK_RATE)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    workers = Workers()
    hour, minute = map(int, arguments.until.split(":"))
    began = time.time()
    end = datetime.now().replace(hour=hour, minute=minute, second=0).timestamp()
    if end <= began:
        end += 24 * 60 * 60
    scenes = Scenes(arguments.folder / "latents", arguments.stage)
    schedule = NoiseSchedule.scaled_linear()
    unet, text = new_unet(arguments.seed), new_text_encoder(arguments.seed)
    model = nn.ModuleDict({"unet": unet, "text": text}).requires_grad_(True)
    # The big table of token vectors is not given to the optimizer: only the used rows are, as a small one.
    used = torch.tensor(scenes.used_ids())
    place = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
    table = text.embeddings.token_embedding
    state_path, step = arguments.folder / "unet_state.pt", 0
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith(_TOKENS)}
    vectors = table.weight.detach().clone()
    averages = {name: value.clone() for name, value in weights.items()} | {"vectors": vectors.clone()}
    optimizer_state = None
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["weights"], strict=False)
        vectors = state["vectors"]
        averages, optimizer_state = state["average"], state.get("optimizer")
        step = state["step"]
        used = torch.tensor(sorted({*used.tolist(), *state["used"].tolist()}))
        if len(used) != len(state["used"]):
            optimizer_state = None
    # Rows: the used ids first, then room for the strange words of one batch, which are not trained.
    strange_rows = BATCH * 3
    place[used] = torch.arange(len(used))
    rows = nn.Parameter(torch.cat([vectors[used], torch.zeros(strange_rows, vectors.shape[1])]))
    table.weight = rows
    matrices = [weight for weight in unet.parameters() if weight.ndim > 1]
    layers = [weight for weight in text.parameters() if weight is not rows]
    others = [weight for weight in unet.parameters() if weight.ndim <= 1] + [rows]
    trained_weights = matrices + layers + others
    groups = [
        {"params": matrices, "weight_decay": 0.01, "share": 1.0},
        {"params": layers, "weight_decay": 0.0, "share": 0.3},
        {"params": others, "weight_decay": 0.0, "share": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, arguments.rate, betas=(0.9, 0.98), fused=True)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    known = set(used.tolist())
    averaged = {name: value for name, value in model.state_dict().items() if not name.endswith(_TOKENS)}
    progress = 0.0
    running, first_step, saved, logged = 0.0, step, time.time(), time.time()
    while True:
        if step % 10 == 0:
            progress = workers.same((time.time() - began) / (end - began))
        falling = min(1.0, max(0.0, 1 - progress) / arguments.anneal)
        rate = arguments.rate * min(1.0, (step - first_step + 1) / WARMUP) * falling
        draw = generator("unet", arguments.seed, step, workers.rank)
        latents, ids = scenes.batch(draw)
        strange = [token for token in ids.unique().tolist() if token not in known]
        with torch.no_grad():
            rows[len(used) : len(used) + len(strange)] = vectors[strange]
        place[strange] = torch.arange(len(used), len(used) + len(strange))
        noise = torch.randn(latents.shape, generator=draw)
        offsets = (torch.arange(BATCH) + torch.rand(BATCH, generator=draw)) / BATCH
        timesteps = (offsets * len(schedule)).long().clamp_max(len(schedule) - 1)
        context, _ = text(place[ids], dtype=torch.float32)
        predicted = unet(add_noise(schedule, latents, noise, timesteps), timesteps, context)
        errors = (predicted - noise).square().mean((1, 2, 3))
        loss = (errors * loss_weights(schedule, timesteps)).mean()
        model.zero_grad()
        loss.backward()
        rows.grad[len(used) :] = 0
        workers.average([weight.grad for weight in trained_weights])
        torch.nn.utils.clip_grad_norm_(trained_weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        optimizer.step()
        step += 1
        running = 0.99 * running + 0.01 * float(loss.detach()) if running else float(loss.detach())
        finished = progress >= 1
        if workers.is_first:
            keep = min(EMA, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_([averages[name] for name in averaged], list(averaged.values()), 1 - keep)
                vectors[used] = rows[: len(used)]
                averages["vectors"][used] = averages["vectors"][used].lerp(vectors[used], 1 - keep)
        if workers.is_first and (step % 50 == 0 or finished):
            speed = 50 * BATCH * workers.count / (time.time() - logged)
            logged = time.time()
            print(
                f"{time.strftime('%H:%M:%S')} step {step} samples {step * BATCH * workers.count} loss {running:.4f}"
                f" rate {rate:.1e} samples/s {speed:.1f} done {progress:.0%}",
                flush=True,
            )
        if workers.is_first and (time.time() - saved > 240 or finished):
            saved = time.time()
            state = {"weights": averaged, "vectors": vectors, "average": averages, "used": used, "step": step}
            torch.save(state | {"optimizer": optimizer.state_dict()}, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
        if finished:
            break


if __name__ == "__main__":
    main()
