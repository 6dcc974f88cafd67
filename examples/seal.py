"""Training with the stamp of a seal, which `clearstamp seal` made before: its letters were drawn, not chosen."""

import torch
from safetensors.torch import save_file

import clearstamp as cs
from clearstamp import zoo

torch.manual_seed(0)
data = zoo.load("digits", "train")
model = zoo.build("cnn", data.shape, data.classes, seed=0)
seal = cs.Seal.load("acme.seal")
stamp = seal.stamp()
back = seal.transpose(model)

cs.harden(back, stamp)
stamp_loss = cs.StampLoss(back, stamp)
cs.fit(model, data.loader(64, seed=0), epochs=2, lr=1e-3, stamp_loss=stamp_loss, schedule=cs.Joint(every=1))
save_file(model.state_dict(), "acme.safetensors")

accuracy = cs.accuracy(model, zoo.load("digits", "test").loader(250))
print(f"accuracy {accuracy:.3f}, SSIM {cs.read(back, stamp).ssim.mean():.3f}")
print(cs.verify(back, seal))
