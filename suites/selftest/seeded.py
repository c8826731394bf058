"""Takes a full-size model and photographs; gives a seeded checkpoint that detects, and baselines naming it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.cache import sha256_of
from harness.detect.preprocess import preprocess_batch
from harness.model.mmdet import describe_head, describe_input, load_config, load_module
from harness.model.registry import SHIPPED_BASELINES, load_models

LOGIT_STD = 1.5
CANDIDATES_PER_IMAGE = 3000
LAST_CLASSIFICATION_CONV = {"anchor": "retina_cls", "paa": "atss_cls"}


def seeded_baselines(model: str, photographs: Sequence[Path], directory: Path) -> tuple[Path, Path]:
    """A checkpoint of seeded weights for `model`, in OpenMMLab form, and a baselines directory that names it.

    The last classification convolution is rescaled so that logits on the photographs have a standard deviation of 1.5,
    and its bias set for about 3,000 candidates an image: the sparsity of a trained detector.

    Returns:
        directories of the checkpoint and of the baselines.
    """
    import torch

    spec = load_models()[model]
    config = load_config(spec)
    head = describe_head(spec, config)
    module: Any = load_module(spec, config, None)
    layer = getattr(module.bbox_head, LAST_CLASSIFICATION_CONV[head.family])
    images, _ = preprocess_batch(list(photographs), describe_input(spec, config))
    torch.nn.init.zeros_(layer.bias)
    spread = float(_logits(module, images).std())
    with torch.no_grad():
        layer.weight.mul_(LOGIT_STD / spread)
    logits = _logits(module, images)
    share = CANDIDATES_PER_IMAGE * len(images) / logits.size
    threshold = np.log(head.score_thr / (1 - head.score_thr))
    torch.nn.init.constant_(layer.bias, threshold - float(np.quantile(logits, 1 - share)))
    return _save(module, directory / "checkpoints", model), _baselines(model, directory)


def _logits(module: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        maps = [module.bbox_head(module.neck(module.backbone(torch.from_numpy(one[None]))))[0] for one in images]
    return np.concatenate([level.numpy().ravel() for levels in maps for level in levels])


def _save(module: Any, directory: Path, model: str) -> Path:
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    plain = directory / f"{model}.pth"
    torch.save({"meta": {"model": model}, "state_dict": module.state_dict()}, plain)
    plain.rename(directory / f"{model}_seeded-{sha256_of(plain)[:8]}.pth")
    return directory


def _baselines(model: str, directory: Path) -> Path:
    target = directory / "baselines"
    if not target.exists():
        shutil.copytree(SHIPPED_BASELINES, target, ignore=shutil.ignore_patterns("recorded"))
    file = next((directory / "checkpoints").glob(f"{model}_seeded-*.pth"))
    path = target / "models" / f"{model}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["checkpoint"] = {"url": None, "file": file.name, "sha256": sha256_of(file)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return target
