"""Pickles of other people are read, never executed: what is read, and that everything else is refused.

Hostile and damaged files stand in tables. Each is given to every reader that would meet it, which must refuse it with a
message, run nothing and write nothing.
"""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from published_files import Armed, assert_same
from torch import nn

from src import checkpoints
from src.checkpoints import CheckpointError
from src.published import convert, unpickle
from src.published.unpickle import UnpickleError

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
# Lists of ten times the list before, ten deep: small in the file and in memory, 10^10 lists for who walks through them.
REPEATED = b"](]q\x00" + b"".join(b"](" + b"h%c" % level * 10 + b"eq%c" % (level + 1) for level in range(10)) + b"e"


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


def entries_of(path):
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def write_archive(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def archive_of(path, program, folder="archive"):
    """What torch.save would write around a pickle."""
    plain = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    return write_archive(path, {f"{folder}/{name}": data for name, data in plain.items()})


def edited(path, value, *changes, compression=zipfile.ZIP_STORED):
    """torch.save's file of `value` after replacing bytes of its pickle, each exactly once."""
    entries = entries_of(saved(path, value))
    name = next(name for name in entries if name.endswith("data.pkl"))
    for old, new in changes:
        assert entries[name].count(old) == 1, (old, entries[name])
        entries[name] = entries[name].replace(old, new)
    return write_archive(path, entries, compression)


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def calling(name, *arguments):
    """A pickle that is what calling `name` gives."""
    module, _, function = name.rpartition(".")
    return b"c%s\n%s\n(" % (module.encode(), function.encode()) + b"".join(map(text, arguments)) + b"tR."


# ---- what is read


def test_every_kind_of_tensor_is_read_as_torch_reads_it(tmp_path):
    base = torch.randn(4, 6)
    weights = OrderedDict(
        {str(dtype): torch.arange(5).to(dtype) for dtype in DTYPES}
        | {"view": base[1:, ::2], "transposed": base.T, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
        | {"parameter": nn.Parameter(base.clone())}
    )
    found = unpickle.torch_weights(saved(tmp_path / "x.pt", weights))
    assert_same(found, torch.load(tmp_path / "x.pt", weights_only=True))
    assert not any(tensor.requires_grad for tensor in found.values())
    assert found["view"].untyped_storage().data_ptr() == found["transposed"].untyped_storage().data_ptr()


def test_words_and_numbers_beside_the_tensors_are_left_out(tmp_path):
    path = saved(tmp_path / "x.pt", {"a": torch.ones(2), "model_name": "small", "step": 3, "lr": 0.1, "note": None})
    assert_same(unpickle.torch_weights(path), {"a": torch.ones(2)})


def test_a_file_named_as_safetensors_is_read_for_what_it_is(tmp_path):
    assert_same(convert.read_weights(saved(tmp_path / "x.safetensors", {"a": torch.ones(2)})), {"a": torch.ones(2)})


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(protocol):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for value in (array, np.asfortranarray(array), array[:, ::2]):
        stub = unpickle.plain_pickle(io.BytesIO(pickle.dumps({"x": value, "labels": [1, 2]}, protocol)))
        assert stub["labels"] == [1, 2]
        found = unpickle.byte_array(stub["x"])
        assert found.dtype == np.uint8 and np.array_equal(found, value)


# ---- what is refused

# Names of programs: refused by name, wherever they stand.
HOSTILE = [
    *("posix.system", "os.system", "nt.system", "os.execvp", "subprocess.Popen", "subprocess.check_output"),
    *("builtins.eval", "builtins.exec", "builtins.getattr", "builtins.__import__", "builtins.open", "builtins.compile"),
    *("__builtin__.eval", "__builtin__.apply", "sys.exit", "importlib.import_module", "runpy.run_path", "pty.spawn"),
    *("pickle.loads", "_pickle.loads", "marshal.loads", "shutil.rmtree", "operator.attrgetter", "types.FunctionType"),
    *(
        "functools.reduce",
        "_codecs.decode",
        "copyreg.add_extension",
        "torchx.load",
        "srcs.load",
        "idlelib.run.Executive",
    ),
]
# Names of packages that model files name: never called, and not weights. Two would write a file.
STUBBED = [
    *("torch.save", "numpy.save", "torch.hub.load", "torch.load", "torch.jit.load", "torch.utils.cpp_extension.load"),
    *("numpy.load", "numpy.distutils.exec_command.exec_command", "numpy.testing._private.utils.runstring"),
    *("src.os.system", "src.runtime.results.subprocess.run", "PIL.Image.open", "argparse.os.system"),
    *("collections.namedtuple", "collections.abc.os.system"),
]
STRANGE = {
    "instance of a class by INST": (b"(" + text(b"touch RAN") + b"icposix\nsystem\n.", "Unsupported operand"),
    "instance of a class by OBJ": (b"(cposix\nsystem\n" + text(b"touch RAN") + b"o.", "Unsupported operand"),
    "names by STACK_GLOBAL": (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x01x\x85R.", "Unsupported operand"),
    "a name by its number in copyreg's registry": (b"\x80\x02\x82\x01.", "Unsupported operand"),
    "a name of eval behind a stop": (b"}.cbuiltins\neval\n(" + text(b"1") + b"tR.", None),
    "a stub called again": (b"csrc.modeling\nX\n)R)R.", "no pickle of a model"),
    "a stub with slots": (b"csrc.modeling\nX\n)R(N}" + text(b"__class__") + b"ctorch\nX\nstb.", "a module"),
    "a stub that gets a method": (b"csrc.m\nX\n)R}" + text(b"__setstate__") + b"ctorch\nsave\nsbK\x01b.", "a module"),
    "an int": (b"K\x01.", "weights by name, found a int"),
    "a list": (b"].", "weights by name, found a list"),
    "a state dict that replaces its methods": (
        b"ccollections\nOrderedDict\n)R}" + text(b"items") + b"ctorch\nSize\nsb" + text(b"a") + b"]s.",
        "under 'a', found a list",
    ),
    "a state of a plain value": (b"\x80\x02K\x01}b.", "no pickle of a model"),
    "an unknown persistent id": (b"}" + text(b"a") + text(b"b") + b"Qs.", "no pickle of a model"),
    "a number as a name": (b"}K\x01]s.", "weights by name"),
    "a list repeated without end": (b"}" + text(b"a") + REPEATED + b"s.", "under 'a', found a list"),
    "a dict in itself": (b"}q\x00" + text(b"a") + b"h\x00s.", "under 'a', found a dict"),
    "100,000 dicts in each other": (b"}" + (text(b"a") + b"}") * 100_000 + b"s" * 100_000 + b".", "found a dict"),
    "a module in itself": (
        b"ctorch.nn\nM\n)Rq\x00}(" + text(b"_modules") + b"}" + text(b"a") + b"h\x00s"
        + text(b"_parameters") + b"}" + text(b"_buffers") + b"}ub.",
        "the module 'a.' stands in two places",
    ),
    "a huge array": (b"cbuiltins\nbytearray\n\x8a\x07" + b"\xff" * 6 + b"\x7f\x85R.", "damaged"),
    "a huge set of dimensions": (b"ctorch\nTensor\n\x8a\x07" + b"\xff" * 6 + b"\x7f\x85R.", "damaged"),
    "text in protocol 0": (b"cposix\nsystem\n(Vtouch RAN\ntR.", "Unsupported operand"),
    "a method of a module": (b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.", "Unsupported operand"),
    "a known package in protocol 0": (b"ctorch.hub\nload\n(Vsomebody/repository\ntR.", "Unsupported operand"),
    "an instance in protocol 0": (b"(Vtouch RAN\nicposix\nsystem\n.", "Unsupported operand"),
    "nothing": (b"", "damaged"),
    "a start alone": (b"\x80\x02", "damaged"),
    "a broken value": (b"\x80\x02}(X\x01\x00\x00\x00a", "damaged"),
    "a call of nothing": (b"R.", "damaged"),
    "a place of the memo that nothing is in": (b"\x80\x02]h\x07.", "damaged"),
    "a key that has no hash": (b"\x80\x02}]]s.", "damaged"),
    "no UTF-8": (b"}X\x01\x00\x00\x00\xffNs.", "damaged"),
}  # fmt: skip


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """Run in an empty folder, which must stay as the test leaves it."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / "RAN").exists() and not (tmp_path.parent / "RAN").exists()


def assert_refused(path, message):
    """By the reader of weights and by the converter, which names the file; nothing is written."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UnpickleError, match=message) as error:
        unpickle.torch_weights(path)
    assert len(str(error.value)) < 400 and "weights_only" not in str(error.value), error.value
    with pytest.raises(CheckpointError, match=message) as error:
        convert.convert(path, path.parent / "out", model="small")
    assert str(error.value).startswith(str(path))
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_refused_by_name(quiet, name):
    shown = name.replace("__builtin__", "(__builtin__|builtins)")  # as Python 2 called it, or as Python 3 does
    for program in (calling(name, b"touch RAN"), b"}" + text(b"a") + calling(name, b"touch RAN")[:-1] + b"s."):
        assert_refused(archive_of(quiet / "x.pt", program), f"names '{shown}'.* take it for hostile .nothing was exec")
        with pytest.raises(UnpickleError, match=f"names '{shown}'.* take it for hostile"):
            unpickle.plain_pickle(io.BytesIO(program))


@pytest.mark.parametrize("name", STUBBED)
def test_what_model_files_may_name_is_not_called(quiet, name):
    call = calling(name, b"RAN", b"RAN")
    assert_refused(archive_of(quiet / "x.pt", call), f"found a {name}")
    assert_refused(archive_of(quiet / "x.pt", b"}" + text(b"a") + call[:-1] + b"s."), f"under 'a', found a {name}")
    with pytest.raises(UnpickleError, match=f"names '{name}'"):
        unpickle.plain_pickle(io.BytesIO(call))


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_pickle_is_refused(quiet, case):
    program, message = STRANGE[case]
    path = archive_of(quiet / "x.pt", program)
    if message is None:
        assert unpickle.torch_weights(path) == {}
    else:
        assert_refused(path, message)


def test_a_hostile_object_among_weights_and_masks_is_refused(quiet):
    """As PyTorch, NumPy and Python themselves write it."""
    armed = Armed(quiet / "RAN")
    torch.save({"model.visual.proj": torch.zeros(2), "bomb": armed}, quiet / "state.pt")
    np.save(quiet / "masks.npy", {"MNIST": np.zeros(4, np.uint8), "SVHN": armed})
    (quiet / "bare.pt").write_bytes(pickle.dumps(armed))
    for name, message in {
        "state.pt": "names 'posix.system'.*nothing was executed",
        "masks.npy": "names 'posix.system'.*nothing was executed",
        "bare.pt": "a bare pickle, which is never executed",
    }.items():
        with pytest.raises(CheckpointError):
            checkpoints.load(quiet / name)
        with pytest.raises(CheckpointError, match=f"{name}: .*{message}"):
            convert.convert(quiet / name, quiet / "out", model="small", pretrained={"a": torch.zeros(32)})
    assert not (quiet / "out").exists()


def test_the_hostile_files_are_armed(quiet):
    """Else the tests above could not fail."""
    pickle.Unpickler(io.BytesIO(pickle.dumps(Armed(quiet / "RAN")))).load()
    pickle.Unpickler(io.BytesIO(calling("posix.system", b"touch RAN2"))).load()
    pickle.Unpickler(io.BytesIO(calling("numpy.save", b"RAN3", b"RAN"))).load()
    assert {file.name for file in quiet.iterdir()} == {"RAN", "RAN2", "RAN3.npy"}
    (quiet / "RAN").unlink()


# Damaged archives, and tensors that are not what they say: what is done to the file of {"a": arange(8)}.
A = {"a": torch.arange(8.0)}
SIZE = b"K\x08\x85"  # the size (8,); the number of elements is K\x08t


def whole(path):
    return saved(path, A).read_bytes()


def cut_short(path):
    path.write_bytes(whole(path)[:-200])


def start_alone(path):
    path.write_bytes(whole(path)[:100])


def one_bit(path):
    data = whole(path)
    at = data.index(A["a"].numpy().tobytes())
    path.write_bytes(data[: at + 8] + b"\xff" + data[at + 9 :])


def without(name):
    def write(path):
        write_archive(path, {n: d for n, d in entries_of(saved(path, A)).items() if not n.endswith(name)})

    return write


def shortened(path):
    write_archive(path, {n: d[:-4] if n.endswith("/0") else d for n, d in entries_of(saved(path, A)).items()})


def changed(*changes, value=A, compression=zipfile.ZIP_STORED):
    return lambda path: edited(path, value, *changes, compression=compression)


def renamed(old, new):
    return lambda path: write_archive(path, {n.replace(old, new): d for n, d in entries_of(saved(path, A)).items()})


def swelling(path):
    write_archive(path, entries_of(saved(path, {"a": torch.zeros(10**6)})), zipfile.ZIP_DEFLATED)


def overlapping(path):
    """Twenty names for the same bytes, which the directory at the end of an archive can list."""
    with zipfile.ZipFile(saved(path, {"a": torch.zeros(10**5)}), "a") as archive:
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("/0"))
        archive.filelist += [entry] * 20
        archive._didModify = True


def two_pickles(path):
    entries = entries_of(saved(path, A))
    write_archive(path, entries | {"other/data.pkl": b"}."})


def torchscript(path):
    write_archive(path, entries_of(saved(path, A)) | {"x/constants.pkl": b").", "x/code/__torch__.py": b"pass"})


def meta(path):
    saved(path, {"a": torch.empty(8, device="meta")})


def sparse(path):
    saved(path, {"a": torch.eye(3).to_sparse()})


def nested(path):
    saved(path, {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])})


def quantized(path):
    saved(path, {"a": torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8)})


DAMAGED = {
    "cut short": (cut_short, "damaged or truncated"),
    "its start alone": (start_alone, "damaged or truncated"),
    "one byte of a tensor": (one_bit, "damaged or truncated file; fetch it again .*checksum of 'x/data/0'"),
    "no storage": (without("data/0"), "damaged or truncated"),
    "no pickle": (without("data.pkl"), "one entry data.pkl in the archive, found 0"),
    "two pickles": (two_pickles, "one entry data.pkl in the archive, found 2"),
    "a storage too short": (shortened, "damaged or truncated.*record size .28 bytes. does not match"),
    "another dtype": (changed((b"FloatStorage", b"DoubleStorage")), "record size .32 bytes. does not match"),
    "a dtype that does not exist": (changed((b"FloatStorage", b"FleetStorage")), "damaged or truncated"),
    "a size past the storage": (changed((SIZE, b"K\x09\x85")), "damaged or truncated"),
    "an offset past the storage": (changed((b"QK\x00", b"QK\x01")), "damaged or truncated"),
    "a stride past the storage": (changed((b"K\x01\x85", b"K\x02\x85")), "damaged or truncated"),
    "a stride before the storage": (changed((b"K\x01\x85", b"J\xff\xff\xff\xff\x85")), "damaged or truncated"),
    "a number repeated": (changed((SIZE, b"J\xff\xff\xff\x7f\x85"), (b"K\x01\x85", b"K\x00\x85")), "another kind"),
    "compressed": (changed(compression=zipfile.ZIP_DEFLATED), "uncompressed"),
    "a small file that swells": (swelling, "uncompressed"),
    "entries on the same bytes": (overlapping, "uncompressed"),
    "TorchScript": (torchscript, "found TorchScript"),
    "a tensor without numbers": (meta, "under 'a', found one of another kind"),
    "a sparse tensor": (sparse, "under 'a', found one of another kind"),
    "a nested tensor": (nested, "under 'a', found one of another kind"),
    "a quantized tensor": (quantized, "under 'a', found one of another kind"),
}


@pytest.mark.filterwarnings("ignore:.*(nested|quantize|Typed|sparse)")  # PyTorch's, about kinds that it will drop
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_or_odd_file_is_refused(quiet, case):
    make, message = DAMAGED[case]
    make(quiet / "x.pt")
    assert_refused(quiet / "x.pt", message)


@pytest.mark.parametrize("folder", ["../RAN", "/RAN", "../../RAN/x", "x/../.."])
def test_an_archive_with_paths_outside_is_refused_and_writes_none(quiet, folder):
    renamed("x/", f"{folder}/")(quiet / "x.pt")
    assert_refused(quiet / "x.pt", "one entry data.pkl in the archive, found 0")
    assert not os.path.exists("/RAN")


@pytest.mark.parametrize(
    ("write", "nature"),
    [
        (
            lambda path: saved(path, A, _use_new_zipfile_serialization=False),
            "a file of torch.save before PyTorch 1.6; write",
        ),
        (lambda path: path.write_bytes(pickle.dumps(Armed(path.parent / "RAN"))), "a bare pickle, which is never exec"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_text("<!DOCTYPE html><html>quota</html>"), "a web page"),
        (lambda path: path.write_bytes(bytes(512) + b"ustar"), "a foreign file"),
    ],
)
def test_files_that_are_no_archive_are_named_for_what_they_are(quiet, write, nature):
    write(quiet / "x.pt")
    with pytest.raises(CheckpointError, match=f"x.pt: expected safetensors or a torch.save file, found {nature}"):
        convert.convert(quiet / "x.pt", quiet / "out", model="small")
    assert not (quiet / "out").exists()


# ---- arrays

ARRAYS = {
    "a place of the memo that would fill the memory": (b"\x80\x02Nr\xff\xff\xff\xff.", "asks for 4294967295 places"),
    "the same in words": (b"Np9999999999\n.", "asks for 9999999999 places"),
    "a frame that would fill the memory": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x00N.", "asks for 720575\\d+ places"),
    "bytes that would fill the memory": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00N.", "damaged"),
    "a text that would fill the memory": (b"X\xff\xff\xff\xffN.", "damaged"),
    "a huge array": (b"c_codecs\nencode\n\x8a\x07" + b"\xff" * 6 + b"\x7f\x85R.", "damaged"),
    "a persistent id": (b"}" + text(b"a") + b"Q.", "no pickle of a model"),
    "a name by its number in copyreg's registry": (b"\x80\x02\x82\x01.", "damaged"),
    "a stub called": (b"cnumpy\ndtype\n" + text(b"u1") + b"\x85R" + text(b"touch RAN") + b"\x85R.", "damaged"),
    "a state of a name": (b"cnumpy\ndtype\n}" + text(b"__init__") + b"cnumpy\ndtype\nsb.", "damaged"),
    "nothing": (b"", "damaged"),
    "a start alone": (b"\x80\x02", "damaged"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_a_strange_pickle_of_arrays_is_refused(quiet, case):
    program, message = ARRAYS[case]
    with pytest.raises(UnpickleError, match=message):
        unpickle.plain_pickle(io.BytesIO(program))
    archive_of(quiet / "x.pt", program)
    with open(quiet / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(program)
    for name in ("x.pt", "x.npy"):
        with pytest.raises(UnpickleError, match=message.replace("damaged", "damaged|no pickle of a model")):
            unpickle.packed_arrays(quiet / name)


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        ("text", "expected an array of bytes, found a str"),
        (np.zeros(3), "expected an array of bytes .uint8., found another type"),
        (np.zeros(3, ">i2"), "expected an array of bytes .uint8., found another type"),
        (np.array([[1], "x"], object), "expected an array of bytes .uint8., found another type"),
        (np.zeros(3, "S5"), "expected an array of bytes .uint8., found another type"),
        (np.dtype("u1"), "damaged"),
    ],
)
def test_other_arrays_are_refused(stub, message):
    with pytest.raises(UnpickleError, match=message):
        unpickle.byte_array(unpickle.plain_pickle(io.BytesIO(pickle.dumps(stub))))


def test_an_array_that_lies_about_its_shape_is_refused():
    program = pickle.dumps(np.zeros(7, np.uint8))
    assert program.count(b"K\x07\x85") == 1
    with pytest.raises(UnpickleError, match="damaged"):
        unpickle.byte_array(unpickle.plain_pickle(io.BytesIO(program.replace(b"K\x07\x85", b"K\x08\x85"))))


def test_damaged_files_of_arrays_are_refused(quiet):
    np.save(quiet / "x.npy", {"MNIST": np.arange(200, dtype=np.uint8)})
    data = (quiet / "x.npy").read_bytes()
    for length in (0, 4, 9, 60, len(data) - 300, len(data) - 60, len(data) - 1):
        (quiet / "x.npy").write_bytes(data[:length])
        with pytest.raises(UnpickleError, match="damaged|no pickle of a model"):
            unpickle.packed_arrays(quiet / "x.npy")
        with pytest.raises(CheckpointError, match="x.npy: damaged"):
            convert.read_masks(quiet / "x.npy", like={"a": torch.zeros(1600)})
