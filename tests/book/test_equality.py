"""Every row of the page "Which implementation equals which": book/equality.yaml is run.

torch.optim is run itself. The other libraries are not installed: each of their rules stands here by its published
formula, in NumPy, as a function of (θ, gradient, step t, learning rate, multiplier η, memory) and its settings.
What their own code did is in the record of `python -m benchmarks.equality`, which is held against the formulas.
"""

import copy
import inspect
import math
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

import optimizers
from benchmarks import equality, rules
from experiments import records

BOOK = Path(__file__).parents[2] / "book"
TABLES = yaml.safe_load((BOOK / "equality.yaml").read_text("utf-8"))
COMPARISONS = [row for group in TABLES["comparisons"].values() for row in group]
BEHAVIORS = [row for group in TABLES["behaviors"].values() for row in group]
RECORD = records.read(records.published_path(equality.SLUG, equality.SCALE))

Array = NDArray[np.float64]
Rule = Callable[..., Array]

# ---------------------------------------------------------------- the other implementations, by formula


def trace(theta, g, t, lr, eta, memory, momentum, nesterov):
    """optax.trace: b = μ b + g; with Nesterov's momentum g + μ b."""
    b = memory["b"] = momentum * memory.get("b", 0) + g
    return theta - lr * (g + momentum * b if nesterov else b)


def velocity_with_lr(theta, g, t, lr, eta, memory, momentum, nesterov=False):
    """Keras, Sutskever et al., the reference: v = μ v − α g, θ + v; with Nesterov's momentum at θ + v + μ v."""
    true = memory.get("true", theta)
    v = memory["v"] = momentum * memory.get("v", 0) - lr * g
    memory["true"] = true + v
    return memory["true"] + momentum * v if nesterov else memory["true"]


def average(theta, g, t, lr, eta, memory, decay):
    """optax.ema, not debiased."""
    b = memory["b"] = decay * memory.get("b", 0) + (1 - decay) * g
    return theta - lr * b


def reference_sgd(theta, g, t, lr, eta, memory, weight_decay, momentum=0.0):
    """The reference: the gradient less λ θ."""
    return velocity_with_lr(theta, g - weight_decay * theta, t, lr, eta, memory, momentum)


def sgdw(theta, g, t, lr, eta, memory, momentum, weight_decay):
    """Loshchilov and Hutter 2019, Algorithm 1: m = β₁ m + η α g; θ − m − η λ θ."""
    m = memory["m"] = momentum * memory.get("m", 0) + lr * g
    return theta - m - eta * weight_decay * theta


def sgdw_timm(theta, g, t, lr, eta, memory, weight_decay, momentum=0.0):
    """timm: first θ (1 − α λ), then torch's SGD."""
    return trace((1 - lr * weight_decay) * theta, g, t, lr, eta, memory, momentum, False)


def sgdw_jettify(theta, g, t, lr, eta, memory, weight_decay, momentum):
    """torch-optimizer: torch's SGD, then α λ off every coordinate, whatever its value."""
    return trace(theta, g, t, lr, eta, memory, momentum, False) - lr * weight_decay


def aggmo(theta, g, t, lr, eta, memory, betas):
    """Lucas et al. 2019: v = β v − g for each β; θ + α/K Σ v."""
    v = memory["v"] = [beta * old - g for beta, old in zip(betas, memory.get("v", [0] * len(betas)), strict=True)]
    return theta + lr / len(betas) * sum(v)


def adadelta(theta, g, t, lr, eta, memory, rho, eps):
    """Zeiler 2012, as optax and Keras have it: ε under both roots."""
    square = memory["square"] = rho * memory.get("square", 0) + (1 - rho) * g**2
    delta = np.sqrt(memory.get("delta", 0) + eps) / np.sqrt(square + eps) * g
    memory["delta"] = rho * memory.get("delta", 0) + (1 - rho) * delta**2
    return theta - lr * delta


def rmsprop(theta, g, t, lr, eta, memory, decay, eps, inside=True, momentum=0.0, first=0.0, correct=False):
    """optax, Keras, timm's RMSpropTF: ε in the root or behind it, the learning rate in the velocity."""
    v = memory["v"] = decay * memory.get("v", first) + (1 - decay) * g**2
    if correct:
        v = v / (1 - decay**t)
    quotient = g / np.sqrt(v + eps) if inside else g / (np.sqrt(v) + eps)
    b = memory["b"] = momentum * memory.get("b", 0) + lr * quotient
    return theta - b


def moments(g, memory, betas):
    m = memory["m"] = betas[0] * memory.get("m", 0) + (1 - betas[0]) * g
    v = memory["v"] = betas[1] * memory.get("v", 0) + (1 - betas[1]) * g**2
    return m, v


def adam(
    theta, g, t, lr, eta, memory, betas=(0.9, 0.999), eps=1e-8, l2=0.0, hat=False,
    weight_decay=0.0, schedule_decay=0.0, late_decay=0.0,
):  # fmt: skip
    """Kingma and Ba 2015, Algorithm 1, or with ε̂ (`hat`); decay as in torch, in the paper, in the reference."""
    m, v = moments(g + l2 * theta, memory, betas)
    if hat:
        step = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (np.sqrt(v) + eps)
    else:
        step = lr * m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    new = theta - step - lr * weight_decay * theta - eta * schedule_decay * theta
    return new - late_decay * new


def adamax(theta, g, t, lr, eta, memory, betas=(0.9, 0.999)):
    """Kingma and Ba 2015, Algorithm 2."""
    m, _ = moments(g, memory, betas)
    u = memory["u"] = np.maximum(betas[1] * memory.get("u", 0), np.abs(g))
    return theta - lr / (1 - betas[0] ** t) * m / u


def nadam(theta, g, t, lr, eta, memory, psi=None, betas=(0.9, 0.999), eps=1e-8):
    """Keras with ψ = 1: μ_t = β₁ (1 − ½ 0.96^{t ψ}); optax without ψ: μ_t = β₁."""
    mu, after = (betas[0] * (1 if psi is None else 1 - 0.5 * 0.96 ** (psi * s)) for s in (t, t + 1))
    product = memory["product"] = memory.get("product", 1) * mu
    m, v = moments(g, memory, betas)
    mean = after * m / (1 - product * after) + (1 - mu) * g / (1 - product)
    return theta - lr * mean / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def nadam_choi(theta, g, t, lr, eta, memory, betas=(0.9, 0.999), eps=1e-8):
    """Choi et al. 2019, timm's NAdamW."""
    m, v = moments(g, memory, betas)
    mean = (betas[0] * m + (1 - betas[0]) * g) / (1 - betas[0] ** t)
    return theta - lr * mean / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def reference_nadam(theta, g, t, lr, eta, memory):
    """The reference: Adam on the gradient of the step before, at first 0."""
    g, memory["previous"] = memory.get("previous", 0 * g), g
    return adam(theta, g, t, lr, eta, memory)


def radam(theta, g, t, lr, eta, memory, eps=1e-8, hat=True, threshold=5.0, skip=False, betas=(0.9, 0.999)):
    """Liu et al. 2020, Algorithm 2; ε beside √v (`hat`) or √v̂; no step at all while unrectified (`skip`)."""
    m, v = moments(g, memory, betas)
    mean, correction = m / (1 - betas[0] ** t), math.sqrt(1 - betas[1] ** t)
    limit = 2 / (1 - betas[1]) - 1
    rho = limit - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
    if rho <= threshold:
        return theta if skip else theta - lr * mean
    r = math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
    root = (np.sqrt(v) + eps) / correction if hat else np.sqrt(v) / correction + eps
    return theta - lr * r * mean / root


def amsgrad(theta, g, t, lr, eta, memory, eps, kind="paper", betas=(0.9, 0.999)):
    """Reddi et al. 2018, Algorithm 2; optax: the largest v̂; Keras: the largest v, then ε̂ and both corrections."""
    m, v = moments(g, memory, betas)
    if kind == "max of corrected":
        v, m = v / (1 - betas[1] ** t), m / (1 - betas[0] ** t)
    largest = memory["max"] = np.maximum(memory.get("max", 0), v)
    if kind == "corrected max":
        lr = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
    return theta - lr * m / (np.sqrt(largest) + eps)


def adabound(theta, g, t, lr, eta, memory, gamma, final_lr, amsbound=False, betas=(0.9, 0.999), eps=1e-8):
    """The authors' code: the bounds follow the learning rate, the corrections are inside the clip."""
    m, v = moments(g, memory, betas)
    if amsbound:
        v = memory["max"] = np.maximum(memory.get("max", 0), v)
    rate = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) / (np.sqrt(v) + eps)
    final = final_lr * eta
    return theta - np.clip(rate, final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))) * m


def adabound_paper(theta, g, t, lr, eta, memory, gamma, final_lr, betas=(0.9, 0.999)):
    """Luo et al. 2019, Algorithm 2: Clip(α/√v, …) / √t, with no correction."""
    m, v = moments(g, memory, betas)
    bounds = final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))
    return theta - np.clip(lr / np.sqrt(v), *bounds) / math.sqrt(t) * m


def lion(theta, g, t, lr, eta, memory, betas, weight_decay=0.0, schedule_decay=0.0):
    """Chen et al. 2023, Algorithm 2."""
    m = memory.get("m", 0)
    memory["m"] = betas[1] * m + (1 - betas[1]) * g
    step = lr * np.sign(betas[0] * m + (1 - betas[0]) * g)
    return theta - step - (lr * weight_decay + eta * schedule_decay) * theta


def signum(theta, g, t, lr, eta, memory, momentum, weight_decay=0.0):
    """Bernstein et al. 2018, Algorithm 2, and 1 without momentum; decoupled decay."""
    m = memory["m"] = momentum * memory.get("m", 0) + (1 - momentum) * g
    return theta - lr * (np.sign(m) + weight_decay * theta)


def adabelief(
    theta, g, t, lr, eta, memory, eps, inner=None, remembers=True, rectify=False, weight_decay=0.0,
    betas=(0.9, 0.999),
):  # fmt: skip
    """Zhuang et al. 2020, Algorithm 2; optax: its own ε inside; the appendix: ε not remembered; timm: RAdam's r."""
    m = memory["m"] = betas[0] * memory.get("m", 0) + (1 - betas[0]) * g
    s = betas[1] * memory.get("s", 0) + (1 - betas[1]) * (g - m) ** 2
    inside = s + (eps if inner is None else inner)
    memory["s"] = inside if remembers else s
    mean, correction = m / (1 - betas[0] ** t), 1 - betas[1] ** t
    step = mean / (np.sqrt(inside / correction) + eps)
    if rectify:
        limit = 2 / (1 - betas[1]) - 1
        rho = limit - 2 * t * betas[1] ** t / correction
        square = correction * (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
        step = math.sqrt(square) * mean / (np.sqrt(inside) + eps) if rho >= 5 else mean
    return theta - lr * (step + weight_decay * theta)


def adopt(
    theta, g, t, lr, eta, memory, clip=0.25, late=0, l2=0.0, weight_decay=0.0, first=False,
    betas=(0.9, 0.9999), eps=1e-6,
):  # fmt: skip
    """The authors' code of Taniguchi et al. 2024; kozistr: a clip a step `late`, decay at the `first` step, too."""
    g = g + l2 * theta
    if t == 1:
        memory |= {"m": 0, "v": g**2}
        return theta - lr * weight_decay * theta if first else theta
    ratio = g / np.maximum(np.sqrt(memory["v"]), eps)
    if clip is not None:
        ratio = np.clip(ratio, -((t - 1 + late) ** clip), (t - 1 + late) ** clip)
    m = memory["m"] = betas[0] * memory["m"] + (1 - betas[0]) * ratio
    memory["v"] = betas[1] * memory["v"] + (1 - betas[1]) * g**2
    return theta - lr * (m + weight_decay * theta)


def ademamix(
    theta, g, t, lr, eta, memory, alpha, beta3=0.9999, warmup=None, inside=0.0, weight_decay=0.0, l2=0.0,
    betas=(0.9, 0.999), eps=1e-8,
):  # fmt: skip
    """Pagliardini et al. 2025, Algorithm 1; the authors' code adds 1e-8 to β `inside` the logarithm."""
    m, v = moments(g + l2 * theta, memory, betas)
    if warmup is not None and t < warmup:
        alpha *= t / warmup
        start, end = (math.log(beta + inside) for beta in (betas[0], beta3))
        beta3 = math.exp(start * end / ((1 - t / warmup) * end + t / warmup * start))
    slow = memory["slow"] = beta3 * memory.get("slow", 0) + (1 - beta3) * (g + l2 * theta)
    step = (m / (1 - betas[0] ** t) + alpha * slow) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return theta - lr * (step + weight_decay * theta)


def prodigy(
    theta, g, t, lr, eta, memory, weight_decay=0.0, l2=0.0, correct=False, safeguard=False, d0=1e-6,
    coefficient=1.0, growth=math.inf, betas=(0.9, 0.999), eps=1e-8,
):  # fmt: skip
    """The authors' code of Mishchenko and Defazio 2024; optax always corrects."""
    g = g + l2 * theta
    first, beta3, d = memory.setdefault("first", theta), math.sqrt(betas[1]), memory.setdefault("d", d0)
    rate = d * lr * (math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) if correct else 1)
    r = memory["r"] = beta3 * memory.get("r", 0) + d / d0 * rate * np.sum(g * (first - theta))
    s = memory["s"] = beta3 * memory.get("s", 0) + d / d0 * (d if safeguard else rate) * g
    m, v = moments(d * g, memory, betas)
    estimate = coefficient * r / np.abs(s).sum()
    largest = memory["largest"] = max(memory.get("largest", d0), estimate)
    memory["d"] = min(largest, (max(d, estimate) if d == d0 else d) * growth)
    return theta - rate * m / (np.sqrt(v) + memory["d"] * eps) - weight_decay * rate * theta


def share(u, g, rescale="mean", eps=None):
    """Liang et al. 2024: [u g > 0] over its mean, or n over its count and 1."""
    mask = (u * g > 0).astype(float)
    if rescale == "none":
        return mask
    return (
        mask / max(mask.mean(), eps or 1e-3) if rescale == "mean" else mask * mask.size / (mask.sum() + (eps or 1))
    )


def lamb(
    theta, g, t, lr, eta, memory, weight_decay=0.0, late_decay=0.0, correct=True, clip=False, max_norm=None,
    small=0.0, late_correct=False, cautious=False, betas=(0.9, 0.999), eps=1e-6,
):  # fmt: skip
    """You et al. 2020, Algorithm 2; Keras and kozistr: decay before, outside of the ratio; NVIDIA: a clip first.

    kozistr corrects the first average past the ratio, too, where it lengthens the step.
    """
    if max_norm is not None:
        g = g * min(1.0, max_norm / np.linalg.norm(g))
    m, v = moments(g, memory, betas)
    if correct:
        m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    theta = (1 - lr * late_decay) * theta
    u = m / (np.sqrt(v) + eps)
    u = (share(u, g) * u if cautious else u) + weight_decay * theta
    ratio = np.linalg.norm(theta) / (np.linalg.norm(u) + small)
    lr = lr / (1 - betas[0] ** t) if late_correct else lr
    return theta - lr * (min(ratio, 1.0) if clip else ratio) * u


def cautious(
    theta, g, t, lr, eta, memory, weight_decay=0.0, direction="adam", rescale="mean", eps=None, adam_eps=1e-8
):  # fmt: skip
    """Liang et al. 2024, around Adam or Lion: decay is not masked."""
    rule = {"adam": partial(adam, eps=adam_eps), "lion": partial(lion, betas=(0.9, 0.99))}[direction]
    u = theta - rule(theta, g, t, lr, eta, memory)
    return theta - share(u, g, rescale, eps) * u - lr * weight_decay * theta


def cautious_fast_average(theta, g, t, lr, eta, memory, alpha=5.0, beta3=0.9999, betas=(0.9, 0.999), eps=1e-8):
    """kozistr's AdEMAMix: the slow average is not masked."""
    m, v = moments(g, memory, betas)
    slow = memory["slow"] = beta3 * memory.get("slow", 0) + (1 - beta3) * g
    m = share(m, g, "count") * m
    return theta - lr * (m / (1 - betas[0] ** t) + alpha * slow) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def cautious_decay(theta, g, t, lr, eta, memory, weight_decay):
    """Chen et al. 2026, around Adam: λ θ where the step has its sign."""
    u = theta - adam(theta, g, t, lr, eta, memory, eps=0.0)
    return theta - u - lr * weight_decay * (u * theta > 0) * theta


def mars(
    theta, g, t, lr, eta, memory, betas, gamma=0.025, max_norm=1.0, first=None, sign=False, hat=False,
    weight_decay=0.0, eps=1e-8,
):  # fmt: skip
    """Yuan et al. 2024, Algorithm 2, around Adam or the sign of an average; g₀ = g₁, or 0 in the authors' code."""
    last = memory.get("last", g if first is None else first)
    memory["last"] = g
    c = g + gamma * betas[0] / (1 - betas[0]) * (g - last)
    c = c / max(1.0, np.linalg.norm(c) / max_norm)
    if sign:
        return signum(theta, c, t, lr, eta, memory, betas[0], weight_decay)
    return adam(theta, c, t, lr, eta, memory, betas=betas, eps=eps, hat=hat, weight_decay=weight_decay)


def schedule_free(
    theta, g, t, lr, eta, memory, weight_decay=0.0, beta=0.9, beta2=None, warmup=0, r=0.0, paper=False, eps=1e-8
):  # fmt: skip
    """Defazio et al. 2024, θ = y, around SGD or, with β₂, RMSprop; `paper`: the bias correction in the rate."""
    rate = lr * min(1.0, t / warmup if warmup else 1.0)
    if beta2 is not None:
        v = memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * g**2
        correction = math.sqrt(1 - beta2**t)
        rate = rate * correction if paper else rate
        g = g / (np.sqrt(v) / (1.0 if paper else correction) + eps)
    g = g + weight_decay * theta
    largest = memory["largest"] = max(memory.get("largest", 0.0), rate)
    total = memory["total"] = memory.get("total", 0.0) + t**r * largest**2
    c, z = t**r * largest**2 / total, memory.get("z", theta)
    memory["z"] = z - rate * g
    return theta + c * (z - theta) + rate * (beta * (1 - c) - 1) * g


def lookahead(theta, g, t, lr, eta, memory, momentum, k, alpha, late=False):
    """Zhang et al. 2019, Algorithm 1, around torch's SGD; `late`: jettify, φ from θ₁, at the steps 1, k + 1, …"""
    fast = trace(theta, g, t, lr, eta, memory, momentum, False)
    slow = memory.get("slow", fast if late else theta)
    if t % k == (1 if late else 0):
        fast = slow = slow + alpha * (fast - slow)
    memory["slow"] = slow
    return fast


def reference_lookahead(theta, g, t, lr, eta, memory, momentum, k):
    """The reference: every (k + 1)-th call makes no step; the slow weights reach nothing."""
    return theta if t % (k + 1) == 0 else velocity_with_lr(theta, g, t, lr, eta, memory, momentum)


def muon(
    theta,
    g,
    t,
    lr,
    eta,
    memory,
    weight_decay=0.0,
    bfloat16=False,
    moonlight=False,
    debias=False,
    kernels=False,
):
    """Jordan et al. 2024: m = μ m + (1 − μ) g; θ (1 − α λ) − α s NS(μ m + (1 − μ) g), with s = √max(1, r/c).

    optax: μ m / (1 − μᵗ⁺¹) + (1 − μ) g / (1 − μᵗ), and s = √max(1, c/r).
    """
    m = memory["m"] = 0.95 * memory.get("m", 0) + 0.05 * g
    bias = (1 - 0.95 ** (t + 1), 1 - 0.95**t) if debias else (1, 1)
    x = torch.tensor(0.95 * m / bias[0] + 0.05 * g / bias[1])
    rows, columns = x.shape
    x = x.bfloat16() if bfloat16 else x
    x = x.T if rows > columns else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    x = (x.T if rows > columns else x).double().numpy()
    ratio = columns / rows if kernels else rows / columns
    scale = 0.2 * max(rows, columns) ** 0.5 if moonlight else max(1, ratio) ** 0.5
    return (1 - lr * weight_decay) * theta - lr * scale * x


def shampoo(theta, g, t, lr, eta, memory, weight_decay=0.0, every=1, eps=1e-6):
    """Gupta et al. 2018, Algorithm 1: (ε + Σ G Gᵀ)^(−1/2k) on each of k sides; kozistr's: 0 until t = `every`."""
    sides = [g.reshape(len(g), -1)] + ([g.T] if g.ndim == 2 else [])
    direction = g.reshape(len(g), -1)
    for i, x in enumerate(sides):
        total = memory[f"total{i}"] = memory.get(f"total{i}", eps * np.eye(len(x))) + x @ x.T
        if t % every == 0:
            values, vectors = np.linalg.eigh(total)
            memory[f"root{i}"] = (vectors * values ** (-1 / (2 * len(sides)))) @ vectors.T
        root = memory.get(f"root{i}", np.zeros_like(total))
        direction = root @ direction if i == 0 else direction @ root
    return theta - lr * (direction.reshape(g.shape) + weight_decay * theta)


def soap(theta, g, t, lr, eta, memory, weight_decay):
    """Vyas et al. 2025, their code: Adam with ε̂ on Q_Lᵀ g Q_R, one step late; decay of the new weight."""
    sides = [g, g.T] if g.ndim == 2 else []
    grams = [0.95 * memory.get(f"gg{i}", 0) + 0.05 * x @ x.T for i, x in enumerate(sides)]
    if t == 1:
        bases = [np.linalg.eigh(gram)[1][:, ::-1] for gram in grams]
        memory |= {"q": bases, "m": np.zeros_like(g), "v": np.zeros_like(g)}
    else:
        t -= 1
        bases = memory["q"]

        def turn(x, *turns):
            return turns[0] @ x @ turns[1].T if turns else x

        m = memory["m"] = 0.95 * memory["m"] + 0.05 * g  # in the parameter's own axes
        v = memory["v"] = 0.95 * memory["v"] + 0.05 * turn(g, *(q.T for q in bases)) ** 2
        rate = lr * np.sqrt(1 - 0.95**t) / (1 - 0.95**t)
        theta = theta - rate * turn(turn(m, *(q.T for q in bases)) / (np.sqrt(v) + 1e-8), *bases)
        theta = theta - lr * weight_decay * theta
        if t % 10 == 0:
            for i, (gram, q) in enumerate(zip(grams, bases, strict=True)):
                order = np.argsort(-np.diag(q.T @ gram @ q))
                memory["v"] = np.take(memory["v"], order, axis=i)
                bases[i] = np.linalg.qr(gram @ q[:, order])[0]
    memory |= {f"gg{i}": gram for i, gram in enumerate(grams)}
    return theta


def adafactor(theta, g, t, lr, eta, memory, relative=False, scaled=True, factored=True, d=1.0, momentum=0.0):
    """Shazeer and Stern 2018, Algorithms 4 and 5; optax and timm: α is the learning rate."""
    beta2 = 1 - t**-0.8
    squared = g**2 + 1e-30
    if g.ndim == 2 and factored:
        r = memory["r"] = beta2 * memory.get("r", 0) + (1 - beta2) * squared.sum(1)
        c = memory["c"] = beta2 * memory.get("c", 0) + (1 - beta2) * squared.sum(0)
        v = np.outer(r, c) / r.sum()
    else:
        v = memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * squared
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt((u**2).mean()) / d)
    u = memory["m"] = momentum * memory.get("m", 0) + (1 - momentum) * u
    rate = min(lr, t**-0.5) if relative else lr
    return theta - rate * (max(1e-3, np.sqrt((theta**2).mean())) if scaled else 1.0) * u


# ---------------------------------------------------------------- the comparisons


def by_formula(row: dict[str, Any], lr: float, scheduled: bool, shape: equality.Shape) -> equality.Stepper:
    """The other side of a row: torch's own class, or a formula."""
    if "formula" not in row:
        return equality.ours(row["theirs"], lr, scheduled, shape)
    rule, settings = equality.evaluated(row["formula"], **globals())
    theta, t, memory = equality.start().reshape(shape), 0, {}

    def step(grad: Array, rate: float) -> Array:
        nonlocal theta, t
        t += 1
        eta = equality.multiplier(t - 1) if scheduled else 1.0
        theta = rule(theta, grad.reshape(shape), t, rate, eta, memory, **settings)
        return theta.flatten()

    return step


@pytest.mark.parametrize("row", COMPARISONS, ids=lambda row: f"{row['ours']} - {row['theirs']}")
def test_comparison(row: dict[str, Any]) -> None:
    assert ("equals" in row) != ("apart" in row)
    assert equality.holds(row, equality.measured(row, partial(by_formula, row)))


RUNS = [(row, call) for row in COMPARISONS for call in row.get("libraries", ())]


@pytest.mark.parametrize(("row", "call"), RUNS, ids=lambda value: value if isinstance(value, str) else None)
def test_the_libraries_own_code_is_as_its_formula_says(row: dict[str, Any], call: str) -> None:
    far = RECORD.get(equality.key(row, call))
    assert equality.holds(row, far)
    # A release that did otherwise than its formula would be a finding, and would need a row of its own.
    assert far == pytest.approx(equality.measured(row, partial(by_formula, row)), rel=0.01, abs=1e-5)


def test_the_record_is_of_these_rows_and_at_least_eight_libraries() -> None:
    assert set(RECORD.keys()) == {equality.key(row, call) for row, call in RUNS}
    assert len({equality.library_of(call) for _, call in RUNS}) >= 8
    for name in RECORD.parameters["libraries"]:
        assert RECORD.provenance["packages"][rules.PEERS[name][1]]


def test_what_is_not_torch_has_a_formula() -> None:
    for row in COMPARISONS:
        assert ("formula" in row) != row["theirs"].startswith("torch.optim."), row


def test_every_torch_optimizer_that_we_have_is_compared() -> None:
    shared = {name for name in optimizers.__all__ if isinstance(getattr(torch.optim, name, None), type)}
    assert {re.match(r"torch\.optim\.(\w+)", r["theirs"])[1] for r in COMPARISONS if "formula" not in r} == shared


def test_the_page_shows_every_group() -> None:
    shown = re.findall(r"^```\{equality\} (.+)$", (BOOK / "equality.md").read_text("utf-8"), re.M)
    assert sorted(shown) == sorted([*TABLES["comparisons"], *(f"behaviors {name}" for name in TABLES["behaviors"])])


# ---------------------------------------------------------------- the behaviors


def parameter(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def steps(optimizer: Optimizer, theta: Tensor, gradients: Any) -> list[Tensor]:
    """Step on these gradients; returns the parameter after each."""
    path = []
    for g in gradients:
        theta.grad = torch.as_tensor(g, dtype=theta.dtype).expand_as(theta).clone()
        optimizer.step()
        path.append(theta.detach().clone())
    return path


def centered_variance() -> None:
    def last(make: Any) -> Tensor:
        theta = parameter(*[0.0] * 64, dtype=torch.float32)
        values = torch.linspace(0.1, 3.0, 64)
        return steps(make([theta], lr=1e-3, alpha=0.9, centered=True), theta, [values] * 300)[-1]

    assert torch.isnan(last(torch.optim.RMSprop)).any()
    assert torch.isfinite(last(optimizers.RMSprop)).all()


def filters_and_vectors() -> None:
    filters, vector = torch.ones(4, 2, 3, 3, requires_grad=True), parameter(1.0, 2.0)
    with pytest.raises(ValueError, match="only supports 2D parameters"):
        torch.optim.Muon([filters])
    for param in (filters, vector):
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="MuonDirection cannot step a parameter of shape"):
        optimizers.Muon([filters, vector]).step()
    assert torch.equal(filters.detach(), torch.ones(4, 2, 3, 3))
    optimizers.Muon([{"params": [filters]}, {"params": [vector], "direction": "adamw"}]).step()
    assert (filters < 1).all()
    assert (vector < parameter(1.0, 2.0)).all()


def factored_filters() -> None:
    kept = []
    for kind in (torch.optim.Adafactor, optimizers.Adafactor):
        filters = torch.ones(64, 64, 3, 3, requires_grad=True)
        filters.grad = torch.ones_like(filters)
        optimizer = kind([filters])
        optimizer.step()
        kept.append(sum(optimizer.state[filters][name].numel() for name in ("row_var", "col_var")))
    assert kept == [24576, 640]


def mu_product() -> None:
    def loaded(make: Any) -> torch.dtype:
        theta = parameter(1.0, dtype=torch.bfloat16)
        optimizer = make([theta])
        steps(optimizer, theta, [1.0])
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return optimizer.state[theta]["mu_product"].dtype

    assert loaded(torch.optim.NAdam) == torch.bfloat16
    assert loaded(optimizers.NAdam) == torch.float32


def sgd_step() -> None:
    theta = parameter(1.0)
    ours, torchs = optimizers.SGD([theta], momentum=0.9), torch.optim.SGD([theta], momentum=0.9)
    for optimizer, counts in ((torchs, False), (ours, True)):
        steps(optimizer, theta, [1.0])
        assert ("step" in optimizer.state[theta]) == counts
    torchs.load_state_dict(ours.state_dict())
    steps(torchs, theta, [1.0])


def late_momentum() -> None:
    def moved(make: Any) -> float:
        theta = parameter(0.0)
        optimizer = make([theta], lr=1.0, dampening=0.75)
        before = steps(optimizer, theta, [1.0])[-1]
        optimizer.param_groups[0]["momentum"] = 0.5
        return float(before - steps(optimizer, theta, [1.0])[-1])

    assert moved(torch.optim.SGD) == 1.0
    assert moved(optimizers.SGD) == 0.25


def sparse_velocity() -> None:
    def trained(make: Any, **options: Any) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        table = torch.nn.Embedding(3, 2, sparse=True)
        optimizer = make(table.parameters(), lr=0.1, **options)
        for row in (1, 0, 1):
            optimizer.zero_grad()
            table(torch.tensor([row])).square().sum().backward()
            optimizer.step()
        return table.weight.detach(), optimizer.state[table.weight].get("momentum_buffer")

    for name, options in (("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})):
        (theirs, kept), (ours, own) = (
            trained(getattr(library, name), **options) for library in (torch.optim, optimizers)
        )
        assert torch.allclose(ours, theirs, rtol=1e-6)
        if options:
            assert kept.is_sparse
            assert not own.is_sparse
            assert torch.allclose(own, kept.to_dense(), rtol=1e-6)
    for other in set(optimizers.list()) - {"sgd", "adagrad"}:
        with pytest.raises(RuntimeError, match="needs dense gradients"):
            trained(partial(optimizers.create, other), **({"momentum": 0.9} if other == "sgdw" else {}))


def differentiable_velocity() -> None:
    def derivative(make: Any) -> Tensor | None:
        gradient, theta = torch.ones(2, requires_grad=True), torch.zeros(2)
        theta.grad = gradient
        make([theta], lr=0.5, momentum=0.9, differentiable=True).step()
        return torch.autograd.grad(theta.sum(), gradient)[0] if theta.requires_grad else None

    assert derivative(torch.optim.SGD) is None
    assert torch.equal(derivative(optimizers.SGD), torch.full((2,), -0.5))


def error_texts() -> None:
    for make, says in (
        (torch.optim.Adam, "Invalid beta parameter at index 0: 1.0"),
        (optimizers.Adam, r"betas\[0\] must lie in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=says):
            make([parameter(1.0)], betas=(1.0, 0.9))


def more_is_taken() -> None:
    for options in (
        {"lr": torch.tensor(0.1), "foreach": True},
        {"betas": (torch.tensor(0.9), 0.99)},
        {"capturable": True},
    ):
        theta = parameter(1.0)
        with pytest.raises((ValueError, AssertionError)):
            steps(torch.optim.Adam([theta], **options), theta, [1.0])
        steps(optimizers.Adam([theta], **options), theta, [1.0])
        assert theta != 1.0


def refused_before() -> None:
    def moved(make: Any) -> bool:
        first, second = parameter(1.0), parameter(1.0, 2.0)
        optimizer = make([first, second], lr=0.1, foreach=False)
        for theta in (first, second):
            theta.grad = torch.ones_like(theta)
        optimizer.step()
        optimizer.state[second]["exp_avg"] = torch.ones(3)
        before = float(first)
        with pytest.raises(RuntimeError):
            optimizer.step()
        return float(first) != before

    assert moved(torch.optim.Adam)
    assert not moved(optimizers.Adam)


def amp_scaling() -> None:
    def supports(optimizer: Any) -> bool:
        return getattr(optimizer, "_step_supports_amp_scaling", False)

    for options, expected in (({}, False), ({"fused": True}, True), ({"fused": False}, False)):
        assert supports(torch.optim.Adam([parameter(1.0)], **options)) is expected
        assert supports(optimizers.Adam([parameter(1.0)], **options)) is expected
    ours = optimizers.Adam([parameter(1.0)], fused=True)
    ours.add_param_group({"params": [parameter(1.0)], "fused": False})
    assert supports(ours) is False
    assert supports(optimizers.Adam([parameter(1.0)], fused=True, capturable=True)) is False


def keyword_only() -> None:
    switches = {"foreach", "maximize", "capturable", "differentiable", "fused"}
    torchs = inspect.signature(torch.optim.Adadelta).parameters
    assert any(torchs[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for name in switches & set(torchs))
    for name in optimizers.list():
        assert not switches & set(inspect.signature(vars(optimizers)[class_named(name)]).parameters), name


def class_named(name: str) -> str:
    return next(public for public in optimizers.__all__ if public.lower() == name)


def foreach() -> None:
    def path(foreach: bool) -> list[Tensor]:
        theta = parameter(1.0, 2.0, 3.0, dtype=torch.float32)
        return steps(optimizers.Adam([theta], lr=0.1, foreach=foreach), theta, [0.3, -1.7, 0.1])

    assert torch.equal(torch.stack(path(True)), torch.stack(path(False)))


def base_lr() -> None:
    for optimizer in (
        optimizers.AdamW([parameter(1.0)], lr=0.1),
        optimizers.AdaBound([parameter(1.0)], lr=0.1),
    ):
        assert optimizer.param_groups[0]["base_lr"] == 0.1
    for other in (torch.optim.AdamW([parameter(1.0)], lr=0.1), optimizers.Adam([parameter(1.0)], lr=0.1)):
        assert "base_lr" not in other.param_groups[0]


def noise_variance() -> None:
    # The variance of n normal draws has a relative standard error of √(2/n): 0.3 % here.
    theta = torch.zeros(200_000, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.SGD([theta], lr=1.0, extensions=[optimizers.GradientNoise(eta=0.3, gamma=0.55)])
    path = [torch.zeros_like(theta), *steps(optimizer, theta, [0.0] * 5)]
    for t in range(1, 6):
        assert float((path[t] - path[t - 1]).var()) == pytest.approx(0.3 / t**0.55, rel=0.02)


def learning_rate_dropout() -> None:
    gradients = [math.sin(t) + 0.3 for t in range(10)]
    masked, plain = (torch.zeros(10_000, dtype=torch.float64, requires_grad=True) for _ in range(2))
    extension = optimizers.LearningRateDropout(keep=0.3)
    some = [plain.detach().clone(), *steps(optimizers.Adam([masked], extensions=[extension]), masked, gradients)]
    whole = [plain.detach().clone(), *steps(optimizers.Adam([plain]), plain, gradients)]
    for t in range(1, 11):
        made, full = some[t] - some[t - 1], whole[t] - whole[t - 1]
        moved = made != 0
        assert float((made - full)[moved].abs().max()) < 1e-15
        assert float(moved.double().mean()) == pytest.approx(0.3, abs=0.025)  # five standard errors


def gradient_dropout() -> None:
    theta = torch.zeros(10_000, dtype=torch.float64, requires_grad=True)
    optimizer = optimizers.SGD([theta], lr=1.0, extensions=[optimizers.GradientDropout(keep=0.3)])
    made = -steps(optimizer, theta, [2.0])[-1]
    assert set(made.tolist()) == {0.0, 2.0}
    assert float((made != 0).double().mean()) == pytest.approx(0.3, abs=0.025)


@pytest.mark.parametrize("row", BEHAVIORS, ids=lambda row: row["check"])
def test_behavior(row: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        globals()[row["check"]]()
