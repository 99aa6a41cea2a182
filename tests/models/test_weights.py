import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kd_lightning.models.weights import (
    file_sha256,
    fingerprint,
    load_weights,
    read_weights,
    renamings,
    save_weights,
)

State = dict[str, Any]
Writer = Callable[[State, Path], Path]


class Net(nn.Module):
    def __init__(self, classes: int = 10, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)


def net(seed: int = 0, classes: int = 10, width: int = 4) -> Net:
    torch.manual_seed(seed)
    network = Net(classes, width)
    for value in network.state_dict().values():
        value.copy_(torch.randint(-9, 9, value.shape))  # also the buffers
    return network


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def write_safetensors(state: State, folder: Path) -> Path:
    safetensors.torch.save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def write_zip(state: State, folder: Path) -> Path:
    torch.save(state, folder / "w.pth")
    return folder / "w.pth"


def write_legacy(state: State, folder: Path) -> Path:
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    return folder / "old.bin"


def write_lightning(state: State, folder: Path) -> Path:
    content = {
        "pytorch-lightning_version": "2.6.6",
        "epoch": 3,
        "state_dict": prefixed(state, "student.") | {"criteria.at.adapter.weight": torch.ones(2)},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1}]}],
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


WRITERS: list[Writer] = [write_safetensors, write_zip, write_legacy, write_lightning]
every_format = pytest.mark.parametrize("write", WRITERS)


# What is read


@every_format
def test_every_format_fills_the_network_with_the_very_weights(write: Writer, tmp_path: Path) -> None:
    source, target = net(0), net(1)
    assert not same(source.state_dict(), target.state_dict())
    load_weights(target, write(source.state_dict(), tmp_path))
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_is_found_in_a_training_checkpoint(key: str, tmp_path: Path) -> None:
    source, target = net(0), net(1)
    torch.save({"epoch": 1, key: source.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "c.pt")
    load_weights(target, str(tmp_path / "c.pt"))
    assert same(source.state_dict(), target.state_dict())


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    source, target = net(0), net(1)
    path = write_safetensors(source.state_dict(), tmp_path).rename(tmp_path / "w.pth")
    load_weights(target, path)
    assert same(source.state_dict(), target.state_dict())


def test_a_lightning_checkpoint_of_another_module_is_read_whole(tmp_path: Path) -> None:
    state = prefixed(net(0).state_dict(), "model.") | {"loss.scale": torch.ones(1)}
    torch.save({"pytorch-lightning_version": "2.6.6", "state_dict": state}, tmp_path / "c.ckpt")
    assert set(read_weights(tmp_path / "c.ckpt")) == set(state)
    with pytest.raises(ValueError, match=r"unexpected \(1\): loss.scale$"):
        load_weights(net(1), tmp_path / "c.ckpt")


def test_half_precision_is_converted(tmp_path: Path) -> None:
    source, target = net(0), net(1)
    load_weights(target, write_zip(net(0).half().state_dict(), tmp_path))
    assert target.conv.weight.dtype == torch.float32
    assert same(source.state_dict(), target.state_dict())  # small integers are exact in float16


# Wrappers


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "student._orig_mod.",
        "model.",
        "network.module.",
    ],
)
def test_prefixes_of_wrappers_do_not_matter(prefix: str, tmp_path: Path) -> None:
    source, target = net(0), net(1)
    load_weights(target, write_zip(prefixed(source.state_dict(), prefix), tmp_path))
    assert same(source.state_dict(), target.state_dict())


def compiled(network: nn.Module) -> nn.Module:
    wrapped: nn.Module = torch.compile(network)  # type: ignore[assignment]
    return wrapped


def compiled_inside(network: Net) -> nn.Module:
    network.fc = torch.compile(network.fc)  # type: ignore[assignment]
    return network


WRAPS: list[Callable[[Net], nn.Module]] = [
    compiled,
    nn.DataParallel,
    lambda network: compiled(nn.DataParallel(network)),
    lambda network: nn.DataParallel(compiled(network)),
    compiled_inside,
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_weights_pass_between_wrapped_and_bare_networks(wrap: Callable[[Net], nn.Module], tmp_path: Path) -> None:
    bare, wrapped = net(0).state_dict(), wrap(net(0)).state_dict()
    assert set(bare).isdisjoint(wrapped) or "fc._orig_mod.weight" in wrapped
    into_bare, into_wrapped = net(1), wrap(net(1))
    load_weights(into_bare, write_zip(wrapped, tmp_path))
    load_weights(into_wrapped, write_zip(bare, tmp_path))
    assert same(into_bare.state_dict(), bare)
    assert same(into_wrapped.state_dict(), wrapped)


def test_a_network_whose_own_names_look_like_a_wrapper_keeps_them(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"model": net(0)}), nn.ModuleDict({"model": net(1)})
    load_weights(target, write_zip(source.state_dict(), tmp_path))
    assert same(source.state_dict(), target.state_dict())


def test_two_networks_in_one_file_are_not_mixed(tmp_path: Path) -> None:
    both = prefixed(net(0).state_dict(), "student.") | prefixed(net(1).state_dict(), "model.")
    with pytest.raises(ValueError, match="unexpected") as error:
        load_weights(net(2), write_zip(both, tmp_path))
    assert sum(key in str(error.value) for key in both) == len(both) // 2


def test_what_stands_beside_a_wrapped_network_is_named(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net(0))
    with pytest.raises(ValueError, match=r"does not fit the network Net:\n  unexpected \(1\): n_averaged$"):
        load_weights(net(1), write_zip(averaged.state_dict(), tmp_path))


@given(
    st.sets(
        st.lists(st.sampled_from(["module", "student", "model", "_orig_mod", "a", "b"]), min_size=1, max_size=4).map(
            ".".join
        ),
        max_size=6,
    )
)
def test_no_renaming_loses_a_key(keys: set[str]) -> None:
    ways = renamings(keys)
    assert ways[0] == {key: key for key in keys}
    assert all(set(way) == keys and len(set(way.values())) == len(keys) for way in ways)


# What does not fit


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_each_missing_and_unexpected_key_is_named_and_nothing_is_loaded(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state, target = net(0).state_dict(), net(1)
    gone = data.draw(st.sets(st.sampled_from(sorted(state)), max_size=len(state) - 1))
    new = data.draw(st.sets(st.sampled_from(["head.weight", "extra", "bn.scale", "conv.bias2"]), min_size=not gone))
    found = {key: value for key, value in state.items() if key not in gone} | {key: torch.ones(1) for key in new}
    path, before = write_zip(found, tmp_path_factory.mktemp("w")), fingerprint(target)
    with pytest.raises(ValueError, match="does not fit the network Net") as error:
        load_weights(target, path)
    lines = dict(line.strip().split(": ", 1) for line in str(error.value).splitlines()[1:])
    named = {title.split(" ")[0]: set(names.split(", ")) for title, names in lines.items()}
    assert named.get("missing", set()) == gone
    assert named.get("unexpected", set()) == new
    assert str(path) in str(error.value)
    assert fingerprint(target) == before


def test_misshapen_keys_are_named_with_both_shapes(tmp_path: Path) -> None:
    target = net(1, width=4)
    before = fingerprint(target)
    with pytest.raises(ValueError, match=r"misshapen \(7\)") as error:
        load_weights(target, write_zip(net(0, width=5).state_dict(), tmp_path))
    assert "conv.weight: file [5, 3, 3, 3], network [4, 3, 3, 3]" in str(error.value)
    assert "fc.weight: file [10, 5], network [10, 4]" in str(error.value)
    assert fingerprint(target) == before


def test_integers_for_floating_point_weights_are_misshapen(tmp_path: Path) -> None:
    state = net(0).state_dict()
    state["fc.bias"] = state["fc.bias"].to(torch.int8)
    with pytest.raises(ValueError, match=r"fc.bias: file \[10\] torch.int8, network \[10\] torch.float32"):
        load_weights(net(1), write_zip(state, tmp_path))


def test_something_else_than_a_tensor_is_misshapen(tmp_path: Path) -> None:
    state: State = net(0).state_dict() | {"fc.bias": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"fc.bias: file list, network \[10\]"):
        load_weights(net(1), write_zip(state, tmp_path))


def test_twenty_names_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    deep = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(25)))
    path = write_zip({"0.weight": torch.ones(2, 2)}, tmp_path)
    with pytest.raises(ValueError, match=r"missing \(24\): 1.weight, .*, 20.weight, and 4 more$"):
        load_weights(deep, path)


class TwoHeads(Net):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.fc_dist = nn.Linear(4, classes)
        self.last = nn.Linear(4, 3)

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.fc, self.fc_dist


NETWORKS: list[Callable[[int], nn.Module]] = [
    lambda classes: net(0, classes),
    TwoHeads,
    lambda classes: timm.create_model("test_resnet", num_classes=classes),
    lambda classes: nn.Linear(4, classes),
]


@pytest.mark.parametrize("make", NETWORKS)
def test_another_number_of_classes_is_said_as_such(make: Callable[[int], nn.Module], tmp_path: Path) -> None:
    path = write_zip(make(10).state_dict(), tmp_path)
    with pytest.raises(ValueError, match=r"w.pth has 10 classes, the network 100: .*weights trained on 100 classes"):
        load_weights(make(100), path)


def test_a_misshapen_layer_before_the_classifier_is_no_matter_of_classes(tmp_path: Path) -> None:
    state = net(0, classes=10).state_dict()
    state["bn.bias"] = torch.ones(7)
    with pytest.raises(ValueError, match=r"misshapen \(3\): bn.bias: file \[7\], network \[4\], fc.bias: file \[10\]"):
        load_weights(net(1, classes=100), write_zip(state, tmp_path))


@pytest.mark.parametrize(("key", "shape", "wanted"), [("fc.weight", (20, 6), [10, 4]), ("fc.bias", (), [10])])
def test_another_embedding_is_no_matter_of_classes(
    key: str, shape: tuple[int, ...], wanted: list[int], tmp_path: Path
) -> None:
    state = net(0).state_dict() | {key: torch.ones(shape)}
    expected = f"misshapen (1): {key}: file {list(shape)}, network {wanted}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        load_weights(net(1), write_zip(state, tmp_path))


# What is not there, or damaged


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights file .*none.pth does not exist"):
        load_weights(net(), tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_weights(net(), tmp_path)


@pytest.mark.parametrize("url", ["http://host/w.pth", "https://host/w.pth", "file:///w.pth", "hf://a/b", "S3://b/k"])
@pytest.mark.parametrize("kind", [str, Path])
def test_urls_are_refused(url: str, kind: Callable[[str], str | Path]) -> None:
    with pytest.raises(ValueError, match=r"must be a local file, got .*: download it"):
        load_weights(net(), kind(url))


@every_format
def test_an_empty_or_truncated_file_is_refused_by_name(write: Writer, tmp_path: Path) -> None:
    path, target = write(net(0).state_dict(), tmp_path), net(1)
    whole, before = path.read_bytes(), fingerprint(target)
    for size in [0, 1, 2, 8, 9, 50, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"weights file {path} is (empty|truncated, damaged, or no weights file)"):
            load_weights(target, path)
    assert fingerprint(target) == before


def test_flipped_bits_in_a_zip_file_are_refused_unless_they_change_nothing(tmp_path: Path) -> None:
    state = {"weight": torch.arange(64.0).reshape(8, 8), "bias": torch.arange(8.0)}
    path = write_zip(state, tmp_path)
    whole = path.read_bytes()
    content: set[int] = set()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", whole, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            content |= set(range(start, start + info.file_size))
    refused = 0
    for position in sorted(set(range(0, len(whole), 5)) | content):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = read_weights(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert position not in content
            assert same(found, state)
    assert refused >= len(content) > 288  # 72 floats and the pickle


@every_format
def test_a_hash_notices_a_flipped_bit_in_any_format(write: Writer, tmp_path: Path) -> None:
    path = write(net(0).state_dict(), tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"has sha256 {hashlib.sha256(damaged).hexdigest()}, but sha256 {sha256} was"):
        load_weights(net(1), path, sha256=sha256)


def test_a_hash_may_be_given_by_its_beginning_in_either_case(tmp_path: Path) -> None:
    source = net(0)
    path = write_safetensors(source.state_dict(), tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_sha256(path) == sha256
    for given_hash in [sha256, sha256[:8], sha256.upper()]:
        target = net(1)
        load_weights(target, path, sha256=given_hash)
        assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("sha256", ["", "abcdefg0", "1234567", "0" * 65])
def test_a_hash_that_is_none_is_an_error(sha256: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"sha256 must be 8 to 64 hex digits, got '{sha256}'"):
        load_weights(net(), write_zip(net().state_dict(), tmp_path), sha256=sha256)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    path.write_text("<!DOCTYPE html> not found")
    with pytest.raises(ValueError, match=r"other.pth is truncated, damaged, or no weights file: it begins with b'<!DO"):
        load_weights(net(), path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat.png", b"meow")
    with pytest.raises(ValueError, match=r"other.pth is truncated, damaged, or no weights file"):
        load_weights(net(), path)


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({"epoch": 3, "lr": 0.1}, r"a dict of \['epoch', 'lr'\]"),
        ({"state_dict": {}}, r"a dict of \[\]"),
        (torch.ones(3), "Tensor"),
        ([torch.ones(3)], "list"),
    ],
)
def test_files_without_a_state_dict_are_refused(content: object, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=f"holds {held}, expected a state dict, or a dict with one under 'state_dict'"):
        load_weights(net(), tmp_path / "c.pt")


# What is hostile


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.system, (f"touch {self.marker}",)


def bomb_zip(content: State, path: Path) -> None:
    torch.save(content, path)


def bomb_legacy(content: State, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bomb_pickle(content: State, path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=2)


@pytest.mark.parametrize("write", [bomb_zip, bomb_legacy, bomb_pickle])
@pytest.mark.parametrize("override", ["0", "1"])
def test_no_pickled_code_is_executed(
    write: Callable[[State, Path], None], override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    write({"hyper_parameters": Bomb(marker), "state_dict": net().state_dict()}, path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", override)
    with pytest.raises(ValueError, match=r"evil.ckpt is refused: besides tensors it holds a pickled \w+.system,"):
        load_weights(net(), path)
    assert not marker.exists()
    if write is bomb_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()  # so the bomb was live


def test_the_refusal_says_what_is_pickled_and_what_to_do(tmp_path: Path) -> None:
    torch.save({"state_dict": net().state_dict(), "args": Path("x")}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"c.pth is refused: besides tensors it holds a pickled pathlib\S*Path,"
    ) as error:
        load_weights(net(), tmp_path / "c.pth")
    assert "save its state_dict() alone as .safetensors" in str(error.value)


# Fingerprints


def test_a_fingerprint_is_the_hash_of_names_types_shapes_and_bytes() -> None:
    state = {"b": torch.tensor(3, dtype=torch.int64), "a": torch.tensor([[1.0, -2.0]])}
    by_hand = b"('a', 'torch.float32', (1, 2))" + struct.pack("<ff", 1.0, -2.0)
    by_hand += b"('b', 'torch.int64', ())" + struct.pack("<q", 3)
    assert fingerprint(state) == hashlib.sha256(by_hand).hexdigest()


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_fingerprint_does_not_see_wrappers(wrap: Callable[[Net], nn.Module]) -> None:
    assert fingerprint(wrap(net(0))) == fingerprint(net(0)) == fingerprint(net(0).state_dict())
    assert fingerprint(net(0)) != fingerprint(net(1))


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([0.0, 2.0, -0.0])},
        {"a": torch.tensor([[0.0, 2.0, 0.0]])},
        {"a": torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)},
        {"b": torch.tensor([0.0, 2.0, 0.0])},
        {"a": torch.tensor([0.0, 2.0, 0.0]), "b": torch.ones(0)},
        {"a": torch.tensor([0, 0x40000000, 0], dtype=torch.int32)},
    ],
)
def test_a_fingerprint_sees_every_difference(other: dict[str, Tensor]) -> None:
    state = {"a": torch.tensor([0.0, 2.0, 0.0])}
    assert fingerprint(state) == fingerprint({"a": torch.tensor([0.0, 9.0, 2.0, 9.0, 0.0])[::2]})
    assert fingerprint(state) != fingerprint(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64])
def test_every_type_has_a_fingerprint(dtype: torch.dtype) -> None:
    assert fingerprint({"a": torch.ones(3).to(dtype)}) != fingerprint({"a": torch.tensor([1, 0, 1]).to(dtype)})


# Saving


@pytest.mark.parametrize("wrap", [lambda network: network, *WRAPS])
def test_saved_weights_load_in_a_plain_program(wrap: Callable[[Net], nn.Module], tmp_path: Path) -> None:
    save_weights(wrap(net(0)), tmp_path / "new" / "w.safetensors")
    plain = net(1)
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "new" / "w.safetensors"))
    assert same(plain.state_dict(), net(0).state_dict())
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_tied_and_strided_weights_are_saved(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    save_weights({"a": shared, "b": shared, "c": shared.T}, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors"), {"a": shared, "b": shared, "c": shared.T})


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    state = net(0).state_dict()
    save_weights(state, tmp_path / "a.safetensors")
    save_weights(dict(reversed(state.items())), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(net(0), path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(net(1), path)
    target = net(2)
    load_weights(target, path)
    assert same(target.state_dict(), net(0).state_dict())
    assert list(tmp_path.iterdir()) == [path]


def test_bad_arguments_of_saving_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got .*w.pth"):
        save_weights(net(), tmp_path / "w.pth")
    with pytest.raises(TypeError, match="weights must be tensors, got int under epoch"):
        save_weights({"epoch": 3}, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []
