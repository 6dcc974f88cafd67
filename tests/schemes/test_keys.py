"""Keys and suspects from strangers: whatever they hold, nothing is raised but `SchemeError`, and no claim is won."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from clearstamp.errors import SchemeError
from clearstamp.schemes import Key, Uchida
from clearstamp.schemes.base import FORMAT, VERSION
from tests.schemes.test_schemes import SHAPE

BITS, PROJECTION = torch.arange(32, dtype=torch.uint8) % 2, torch.randn(32, 54, generator=torch.manual_seed(0))
KEY = Key(Uchida(bits=32, layer="4"), SHAPE, {"bits": BITS, "projection": PROJECTION}, {"layer": "4"})
ABOUT = KEY.about | {"version": VERSION, "digest": KEY.digest}


def written(folder: Path, about: object) -> Path:
    """A file that holds the tensors of a key and something about it, as JSON or as it is."""
    path = folder / "key.safetensors"
    text = about if isinstance(about, str) else json.dumps(about)
    path.write_bytes(save(KEY.tensors, {FORMAT: text}))
    return path


@pytest.mark.parametrize(
    "about",
    [
        {name: value for name, value in ABOUT.items() if name != "digest"},
        "[" * 100_000 + "]" * 100_000,
        json.dumps(ABOUT).replace('"4"', "[" * 600 + "]" * 600),
        ABOUT | {"settings": None},
        ABOUT | {"scheme": "uchida"},
        ABOUT | {"scheme": {"name": ["uchida"]}},
        None,
    ],
    ids=["no checksum", "too deep", "too deep within", "no settings", "no scheme", "no name", "nothing"],
)
def test_a_key_file_of_any_other_form_is_refused(about, tmp_path):
    assert Key.load(written(tmp_path, ABOUT)).digest == KEY.digest
    with pytest.raises(SchemeError, match="not a readable key file"):
        Key.load(written(tmp_path, about))


@pytest.mark.parametrize("shape", [(), (0, 9, 9), (1, -9, -9), (1.5, 9, 9), ("a", "b"), (1, 2**20, 2**20)])
def test_a_shape_that_no_input_has_is_refused(shape, tmp_path):
    with pytest.raises(SchemeError, match="not the shape of an input"):
        Key.load(written(tmp_path, ABOUT | {"shape": list(shape)}))
    with pytest.raises(SchemeError, match="not the shape of an input"):
        replace(KEY, shape=shape)
