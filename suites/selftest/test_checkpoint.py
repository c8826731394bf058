"""Weights are found by name, known by hash, loaded as tensors only, and fit the module or are refused."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from harness.cache import sha256_of
from harness.errors import CheckpointError, Missing
from harness.model.checkpoint import RANDOM_WEIGHTS, Weights, find, load_into, load_state_dict
from harness.model.registry import ModelSpec, load_models

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.selftest

CONTENT = b"not a checkpoint, but it has a hash"


def spec_for(file: Path, url: str | None = None, digits: int = 8) -> ModelSpec:
    """A model whose checkpoint is called like `file` and hashed like `CONTENT`."""
    spec = load_models()["pisa"]
    sha256 = "0" * 64
    if file.exists():
        sha256 = sha256_of(file)
    checkpoint = spec.checkpoint.model_copy(update={"file": file.name, "url": url, "sha256": sha256[:digits]})
    return spec.model_copy(update={"checkpoint": checkpoint})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights" / "mine.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


# --- finding


@pytest.mark.parametrize("digits", [8, 16, 64])
def test_a_checkpoint_is_found_by_name_and_any_length_of_hash(file: Path, digits: int) -> None:
    assert find(spec_for(file, digits=digits), [file.parent]).path == file


def test_the_found_weights_carry_the_whole_hash(file: Path) -> None:
    assert find(spec_for(file), [file.parent]).sha256 == sha256_of(file)


def test_the_first_directory_that_has_it_wins(file: Path, tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / file.name).write_bytes(CONTENT)
    assert find(spec_for(file), [tmp_path / "empty", file.parent, tmp_path / "later"]).path == file


def test_one_changed_byte_is_noticed(file: Path) -> None:
    spec = spec_for(file)
    file.write_bytes(CONTENT[:-1] + b"H")
    with pytest.raises(CheckpointError, match=f"wanted SHA-256 {spec.checkpoint.sha256}…, found "):
        find(spec, [file.parent])


def test_a_wrong_hash_is_mended_by_fetching_again(file: Path) -> None:
    spec = spec_for(file, url="https://example.org/mine.pth")
    file.write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        find(spec, [file.parent])
    assert caught.value.remedy == f"rm {file} && python -m harness fetch pisa --checkpoints {file.parent}"


def test_a_checkpoint_that_is_nowhere_is_missing_and_not_wrong(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="not found in"):
        find(spec_for(tmp_path / "mine.pth"), [tmp_path])


@pytest.mark.parametrize(
    ("url", "remedy"),
    [("https://example.org/mine.pth", "python -m harness fetch pisa --checkpoints "), (None, "put the file at ")],
    ids=["published", "your own"],
)
def test_a_missing_checkpoint_says_how_to_get_it(tmp_path: Path, url: str | None, remedy: str) -> None:
    with pytest.raises(Missing) as caught:
        find(spec_for(tmp_path / "mine.pth", url), [tmp_path])
    assert caught.value.remedy.startswith(remedy)


def test_a_model_of_other_baselines_is_fetched_with_them(tmp_path: Path) -> None:
    with pytest.raises(Missing) as caught:
        find(spec_for(tmp_path / "mine.pth", "https://example.org/mine.pth"), [tmp_path / "my weights"], Path("own"))
    assert caught.value.remedy == (
        f"python -m harness fetch pisa --checkpoints '{tmp_path}/my weights' --baselines own"
    )


def test_only_seeded_weights_are_random(file: Path) -> None:
    assert [weights.random for weights in (RANDOM_WEIGHTS, Weights(file, "0"))] == [True, False]


# --- reading


class RunsCode:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        {"meta": {"epoch": 12}, "state_dict": {"weight": torch.ones(2)}},
        {"weight": torch.ones(2)},
        {"state_dict": OrderedDict(weight=torch.ones(2))},
        {"state_dict": {"module.weight": torch.ones(2)}},
    ],
    ids=["OpenMMLab", "bare", "ordered", "data parallel"],
)
def test_the_usual_forms_are_read(tmp_path: Path, content: object) -> None:
    assert list(load_state_dict(saved(tmp_path / "w.pth", content))) == ["weight"]


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {}}, {"state_dict": {"weight": 1.0}}, {"epoch": 1}, {}, [torch.ones(2)], torch.ones(2)],
    ids=["empty", "figures", "no state dict", "nothing", "list", "tensor"],
)
def test_what_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="wanted 'state_dict' with tensors"):
        load_state_dict(saved(tmp_path / "w.pth", content))


@pytest.mark.parametrize("kept", [0, 10, 600])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    path = saved(tmp_path / "w.pth", {"state_dict": {"weight": torch.ones(64)}})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"not a readable checkpoint|damaged pickle"):
        load_state_dict(path)


def _in_a_zip(path: Path, content: object) -> None:
    torch.save(content, path)


def _bare(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [_in_a_zip, _bare])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, write: Callable[[Path, object], None]
) -> None:
    write(tmp_path / "w.pth", {"state_dict": {"weight": RunsCode(tmp_path / "ran")}})
    with pytest.raises(CheckpointError, match="only tensors and plain data are loaded"):
        load_state_dict(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_the_type_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"state_dict": {"weight": torch.ones(2)}, "spec": Weights(None, "0")})
    with pytest.raises(CheckpointError, match=r"an object of type 'harness\.model\.checkpoint\.Weights'"):
        load_state_dict(path)


# --- fitting


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


State = dict[str, torch.Tensor]
MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (lambda s: {k: v for k, v in s.items() if k != "0.bias"}, "1 missing keys, first 0.bias"),
    "unexpected": (lambda s: s | {"2.weight": torch.ones(1)}, "1 unexpected keys, first 2.weight"),
    "wrong shape": (lambda s: s | {"0.bias": torch.ones(5)}, "1 wrongly shaped keys, first 0.bias"),
    "NaN": (lambda s: s | {"0.bias": torch.full((4,), torch.nan)}, "NaN or Inf in 0.bias"),
    "infinite": (lambda s: s | {"0.bias": torch.full((4,), torch.inf)}, "NaN or Inf in 0.bias"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_is_named(tmp_path: Path, module: nn.Module, misfit: str) -> None:
    change, named = MISFITS[misfit]
    path = saved(tmp_path / "w.pth", {"state_dict": change(dict(module.state_dict()))})
    with pytest.raises(CheckpointError, match=named):
        load_into(module, path, "tiny")


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_changes_nothing(tmp_path: Path, module: nn.Module, misfit: str) -> None:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    changed = MISFITS[misfit][0]({key: value + 1 for key, value in before.items()})
    with pytest.raises(CheckpointError):
        load_into(module, saved(tmp_path / "w.pth", changed), "tiny")
    assert _same(module.state_dict(), before)


def test_a_checkpoint_that_fits_is_loaded(tmp_path: Path, module: nn.Module) -> None:
    wanted = {key: value + 1 for key, value in module.state_dict().items()}
    load_into(module, saved(tmp_path / "w.pth", wanted), "tiny")
    assert _same(module.state_dict(), wanted)


def test_the_counter_of_a_batch_norm_may_be_missing(tmp_path: Path, module: nn.Module) -> None:
    state = {k: v + 1 for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    load_into(module, saved(tmp_path / "w.pth", state), "tiny")
    assert torch.equal(module.state_dict()["0.bias"], state["0.bias"])


def _same(a: "Mapping[str, torch.Tensor]", b: "Mapping[str, torch.Tensor]") -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
