"""A stamp in a plain PyTorch loop: one optimizer for the task and the stamp together."""

import torch
import torch.nn.functional as F

import clearstamp as cs
from clearstamp import zoo

torch.manual_seed(0)
data = zoo.load("digits", "train")
model = zoo.build("cnn", data.shape, data.classes, seed=0)
stamp = cs.Stamp.from_texts(["AB", "CD", "EF"], outputs=data.classes, shape=data.shape, seed=0)
back = cs.transpose(model, stamp.secrets[:1])

cs.harden(back, stamp)
stamp_loss = cs.StampLoss(back, stamp)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(2):
    for images, labels in data.loader(64, seed=epoch):
        loss = F.cross_entropy(model(images), labels) + stamp_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

accuracy = cs.accuracy(model, zoo.load("digits", "test").loader(250))
print(f"accuracy {accuracy:.3f}, SSIM {cs.read(back, stamp).ssim.mean():.3f}")
