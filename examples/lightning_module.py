"""A stamp in PyTorch Lightning: the training step adds the stamp loss."""

import lightning as L
import torch
import torch.nn.functional as F

import clearstamp as cs
from clearstamp import zoo


class Classifier(L.LightningModule):
    def __init__(self, model: torch.nn.Module, stamp_loss: cs.StampLoss):
        super().__init__()
        self.model, self.stamp_loss = model, stamp_loss

    def training_step(self, batch, index):
        images, labels = batch
        return F.cross_entropy(self.model(images), labels) + self.stamp_loss()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


L.seed_everything(0, verbose=False)
data = zoo.load("digits", "train")
model = zoo.build("cnn", data.shape, data.classes, seed=0)
stamp = cs.Stamp.from_texts(["AB", "CD", "EF"], outputs=data.classes, shape=data.shape, seed=0)
back = cs.transpose(model, stamp.secrets[:1])
cs.harden(back, stamp)

trainer = L.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Classifier(model, cs.StampLoss(back, stamp)), data.loader(64, seed=0))

accuracy = cs.accuracy(model, zoo.load("digits", "test").loader(250))
print(f"accuracy {accuracy:.3f}, SSIM {cs.read(back, stamp).ssim.mean():.3f}")
