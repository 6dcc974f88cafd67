"""A stamp with Hugging Face Accelerate: `Stamped` is what is prepared, so every process sees one model."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed

import clearstamp as cs
from clearstamp import zoo

set_seed(0)
accelerator = Accelerator()
data = zoo.load("digits", "train")
model = zoo.build("cnn", data.shape, data.classes, seed=0)
stamp = cs.Stamp.from_texts(["AB", "CD", "EF"], outputs=data.classes, shape=data.shape, seed=0)
back = cs.transpose(model, stamp.secrets[:1])
cs.harden(back, stamp)

stamped = cs.Stamped(model, cs.StampLoss(back, stamp))
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
engine, optimizer, loader = accelerator.prepare(stamped, torch.optim.Adam(model.parameters(), lr=1e-3), loader)
for _ in range(2):
    for images, labels in loader:
        outputs, stamp_loss = engine(images)
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(outputs, labels) + stamp_loss)
        optimizer.step()

if accelerator.is_main_process:
    accuracy = cs.accuracy(model, zoo.load("digits", "test").loader(250))
    print(f"accuracy {accuracy:.3f}, SSIM {cs.read(back, stamp).ssim.mean():.3f}")
