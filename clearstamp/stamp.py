"""Stamps: secret keys and the images that they reveal."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from clearstamp.coding.payload import Payload, encode
from clearstamp.errors import StampError
from clearstamp.files import checksum, write_atomically
from clearstamp.pictures import draw_text, open_image, picture_shape

PAPER_KEY = (-0.0748, 5.3644, -8.2304, -7.3593, -3.8515, 2.6815, -0.1981, 7.9288, -0.8874, 2.6461)
"""The paper's single key, for a network of ten outputs."""

FORMAT, VERSION = "clearstamp", 1
FROZEN = "frozen/"  # begins the names of frozen values in a stamp file
MAX_KEY = 1000.0  # far above every range in use; larger signals lose the secret's [0, 1] in float32 rounding


@dataclass(frozen=True, eq=False)
class Stamp:
    """Key-secret pairs.

    By itself a stamp shows pictures and scores. That nobody chose the keys to fit a model is shown only by a `Seal`,
    which draws them.

    Attributes:
        keys: ``[k, *outputs]`` float32, finite, no larger than 1000, shaped like the model's output.
        secrets: ``[k, *input]`` float32 in [0, 1], shaped like the model's input, before normalisation.
        labels: what each secret shows, one string per key.
        frozen: what the `paper` readout takes for the branches that it freezes, from `clearstamp.freeze`; a part of the
            key (set it with `dataclasses.replace`), to be passed to `transpose`. Empty for the public probe's values.
        payload: how bytes lie in the secrets, for a stamp made by `from_bytes`; else None.

    Raises `StampError` for anything else, and for two equal keys with different secrets.
    """

    keys: Tensor
    secrets: Tensor
    labels: tuple[str, ...]
    frozen: dict[str, Tensor] = field(default_factory=dict)
    payload: Payload | None = None

    def __post_init__(self) -> None:
        check_keys(self.keys)
        check_secrets(self.secrets)
        if not len(self.keys) == len(self.secrets) == len(self.labels):
            raise StampError(
                "keys, secrets and labels differ in number",
                got=f"{len(self.keys)} keys, {len(self.secrets)} secrets, {len(self.labels)} labels",
                expected="one of each per pair",
            )
        if not all(value.isfinite().all() for value in self.frozen.values()):
            raise StampError("a frozen value is not finite")
        object.__setattr__(self, "keys", self.keys.detach().float())
        object.__setattr__(self, "secrets", self.secrets.detach().float())
        flat = self.keys.flatten(1)
        equal = (torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") == 0).triu(1)
        for i, j in equal.nonzero().tolist():
            if not torch.equal(self.secrets[i], self.secrets[j]):
                raise StampError(
                    "two equal keys with different secrets",
                    where=f"pairs {i} and {j}",
                    remedy="give every secret a key of its own",
                )

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        *,
        outputs: int | Sequence[int],
        shape: Sequence[int],
        seed: int,
        key_range: float = 10.0,
        dark: bool = False,
    ) -> "Stamp":
        """A stamp whose secrets are `texts`, drawn as large as an input of `shape` holds.

        `outputs` is the length or the shape of the model's output, `shape` that of its input: (C, H, W), or any other
        that `clearstamp.pictures.picture_shape` makes a picture of.

        Text is dark on white as in the paper, light on dark with `dark`. Keys are drawn from `seed`: whoever knows the
        seed knows the keys, so a real owner's seed is as secret as the stamp file.
        """
        if isinstance(texts, str):
            raise StampError("one string instead of a list of texts", got=repr(texts), remedy="pass [text]")
        secrets = [draw_text(text, shape, dark=dark) for text in texts]
        return cls.from_secrets(secrets, outputs=outputs, seed=seed, key_range=key_range, labels=texts)

    @classmethod
    def from_images(
        cls,
        paths: Sequence[str | Path],
        *,
        outputs: int | Sequence[int],
        shape: Sequence[int],
        seed: int,
        key_range: float = 10.0,
    ) -> "Stamp":
        """A stamp whose secrets are image files in any format that Pillow reads, resized to `shape`."""
        if isinstance(paths, str | Path):
            raise StampError("one path instead of a list of paths", got=repr(str(paths)), remedy="pass [path]")
        secrets = [open_image(path, shape) for path in paths]
        labels = [Path(path).stem for path in paths]
        return cls.from_secrets(secrets, outputs=outputs, seed=seed, key_range=key_range, labels=labels)

    @classmethod
    def from_secrets(
        cls,
        secrets: Tensor | Sequence[Tensor],
        *,
        outputs: int | Sequence[int],
        seed: int,
        key_range: float = 10.0,
        labels: Sequence[str] | None = None,
    ) -> "Stamp":
        """A stamp from secret tensors, ``[k, *input]`` or k times ``[*input]``, with keys drawn from `seed`."""
        if len(secrets) == 0:
            raise StampError("an empty stamp", expected="at least one secret")
        if len({secret.shape for secret in secrets}) > 1:
            raise StampError("secrets of different shapes", got=[list(secret.shape) for secret in secrets])
        stacked = secrets if isinstance(secrets, Tensor) else torch.stack(list(secrets))
        keys = draw_keys(len(stacked), outputs, seed=seed, key_range=key_range)
        return cls(keys, stacked, tuple(labels or (f"secret {i}" for i in range(len(stacked)))))

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        outputs: int | Sequence[int],
        shape: Sequence[int],
        seed: int,
        code: str = "ldpc",
        patches: int = 6,
        per_channel: bool = False,
        key_range: float = 10.0,
    ) -> "Stamp":
        """A stamp whose secrets hold `data` as patches of black and white, `patches` along each side of an image.

        `code` corrects errors: ``"ldpc"`` (the strongest), ``"reed-solomon"``, ``"hamming"`` as in the paper, or
        ``"none"``. With `per_channel` a patch of a colour image holds a bit for each channel. `clearstamp.read_bytes`
        reads the data back. Raises `CodingError` for an unknown code, and for more patches than an image has room for.
        """
        seen = picture_shape(shape)
        images, payload = encode(data, seen, code=code, patches=patches, per_channel=per_channel, seed=seed)
        drawn = cls.from_secrets(images.reshape(len(images), *shape), outputs=outputs, seed=seed, key_range=key_range)
        return replace(drawn, payload=payload)

    @classmethod
    def joined(cls, *stamps: "Stamp") -> "Stamp":
        """The pairs of several stamps as one stamp to embed, such as that of a seal and those of its reserves.

        A payload is left out, since it lies in a part of them. Raises `StampError` for stamps of different shapes, and
        for one with frozen values.
        """
        shapes = {(part.keys.shape[1:], part.secrets.shape[1:]) for part in stamps}
        if len(shapes) != 1:
            got = ", ".join(f"keys {list(keys)} and secrets {list(secrets)}" for keys, secrets in sorted(shapes))
            raise StampError("stamps of different shapes", got=got or "none", expected="one shape")
        if any(part.frozen for part in stamps):
            raise StampError("a stamp with frozen values cannot be joined to others")
        keys, secrets = torch.cat([part.keys for part in stamps]), torch.cat([part.secrets for part in stamps])
        return cls(keys, secrets, tuple(label for part in stamps for label in part.labels))

    def pick(self, places: Tensor) -> "Stamp":
        """The pairs at these places, as a stamp of their own; a payload that lies in all of them is left out."""
        labels = tuple(self.labels[place] for place in places.tolist())
        return Stamp(self.keys[places], self.secrets[places], labels, self.frozen)

    def to(self, device: torch.device | str) -> "Stamp":
        """The same stamp on another device."""
        if self.keys.device == torch.device(device):
            return self
        return replace(self, keys=self.keys.to(device), secrets=self.secrets.to(device))

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file; a crash leaves the old file or the new one, never half of one."""
        frozen = {FROZEN + name: value for name, value in self.frozen.items()}
        named = {"keys": self.keys, "secrets": self.secrets} | frozen
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        about = {
            "format": FORMAT,
            "version": VERSION,
            "labels": self.labels,
            "checksum": checksum(self.labels, tensors),
        } | ({} if self.payload is None else {"payload": self.payload.about})
        write_atomically(Path(path), save(tensors, {FORMAT: json.dumps(about, ensure_ascii=False)}))

    @classmethod
    def load(cls, path: str | Path) -> "Stamp":
        """Read a stamp file. Nothing is unpickled. Raises `StampError` unless the file is a whole, unchanged stamp."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(FORMAT, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise StampError(
                "not a readable stamp file",
                got=f"{type(error).__name__}: {error}",
                where=path,
                expected="a whole .safetensors file written by Stamp.save",
                remedy="fetch the file again from where the owner keeps it",
            ) from error
        frozen = {name.removeprefix(FROZEN): tensor for name, tensor in tensors.items() if name.startswith(FROZEN)}
        whole = {"keys", "secrets", *(FROZEN + name for name in frozen)} == set(tensors)
        if not isinstance(about, dict) or about.get("format") != FORMAT or not whole:
            raise StampError("a safetensors file, but not a stamp", got=sorted(tensors), where=path)
        if about.get("version") != VERSION:
            raise StampError(
                "unknown version of the stamp format",
                got=about.get("version"),
                expected=VERSION,
                where=path,
                remedy="read it with the release of clearstamp that wrote it, or a newer one",
            )
        if about.get("checksum") != checksum(about.get("labels", ()), tensors):
            raise StampError("the stamp was changed or damaged after it was written: wrong checksum", where=path)
        payload = Payload(**about["payload"]) if "payload" in about else None
        return cls(tensors["keys"], tensors["secrets"], tuple(about["labels"]), frozen, payload)


def draw_keys(count: int, outputs: int | Sequence[int], *, seed: int, key_range: float = 10.0) -> Tensor:
    """Keys ``[count, *outputs]``, uniform in [-key_range, key_range], the same on every device."""
    shape = (count, outputs) if isinstance(outputs, int) else (count, *outputs)
    if min(shape) < 1 or len(shape) < 2:
        raise StampError("key size out of range", got=f"{count} keys of {outputs} outputs", expected="at least 1 each")
    if not 0 < key_range <= MAX_KEY:
        raise StampError("key range out of range", got=key_range, expected=f"0 < key_range <= {MAX_KEY:g}")
    generator = torch.Generator("cpu").manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1) * key_range


def check_keys(keys: Tensor) -> None:
    """Raise `StampError` unless `keys` is ``[k, *outputs]``, k >= 1, finite and within `MAX_KEY`."""
    if not isinstance(keys, Tensor) or keys.dim() < 2 or 0 in keys.shape:
        got = list(keys.shape) if isinstance(keys, Tensor) else type(keys).__name__
        raise StampError("keys of the wrong shape", got=got, expected="a tensor [k, *outputs], k >= 1")
    if not keys.isfinite().all():
        raise StampError("a key is not finite", where=f"key {int((~keys.isfinite()).flatten(1).any(1).nonzero()[0])}")
    if keys.abs().max() > MAX_KEY:
        raise StampError("a key is out of range", got=float(keys.abs().max()), expected=f"within +-{MAX_KEY:g}")


def check_secrets(secrets: Tensor) -> None:
    """Raise `StampError` unless `secrets` is ``[k, *input]``, k >= 1, finite and in [0, 1]."""
    if not isinstance(secrets, Tensor) or secrets.dim() < 2 or 0 in secrets.shape:
        got = list(secrets.shape) if isinstance(secrets, Tensor) else type(secrets).__name__
        raise StampError("secrets of the wrong shape", got=got, expected="a tensor [k, *input], k >= 1")
    if not secrets.isfinite().all():
        raise StampError(
            "a secret is not finite", where=f"secret {int((~secrets.isfinite()).flatten(1).any(1).nonzero()[0])}"
        )
    if secrets.min() < 0 or secrets.max() > 1:
        raise StampError(
            "a secret is out of range",
            got=f"values from {secrets.min():.3g} to {secrets.max():.3g}",
            expected="values in [0, 1]",
            remedy="divide 8-bit images by 255; give secrets before input normalisation",
        )
