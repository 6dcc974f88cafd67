"""A stolen model comes back as a file, in half precision and in a wrapper's names; its owner reads the stamp in it."""

import tempfile
from pathlib import Path

import torch

import clearstamp as cs
from clearstamp import zoo

torch.manual_seed(0)
data = zoo.load("digits", "train")
owned = zoo.build("cnn", data.shape, data.classes, seed=0)
stamp = cs.Stamp.from_texts(["AB", "CD", "EF"], outputs=data.classes, shape=data.shape, seed=0)
back = cs.transpose(owned, stamp.secrets[:1])
cs.harden(back, stamp)
cs.fit(
    owned,
    data.loader(64, seed=0),
    epochs=2,
    lr=1e-3,
    stamp_loss=cs.StampLoss(back, stamp),
    schedule=cs.Joint(every=1),
)

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "found.pt")
    weights = {f"module.{name}": tensor.half() for name, tensor in owned.state_dict().items()}
    torch.save({"epoch": 2, "state_dict": weights}, file)

    architecture = zoo.build("cnn", data.shape, data.classes, seed=1)  # none of its weights is used
    suspect = cs.load_suspect(file, into=architecture)

print(suspect.report)
accuracy = cs.accuracy(suspect.model, zoo.load("digits", "test").loader(250))
ssim = cs.read(cs.transpose(suspect.model, stamp.secrets[:1]), stamp).ssim.mean()
print(f"accuracy {accuracy:.3f}, SSIM {ssim:.3f}")
