"""torchrun --nproc-per-node 2 examples/distributed.py [fsdp]: with replicated or with fully sharded weights."""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import clearstamp as cs
from clearstamp import zoo

mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (int(os.environ["WORLD_SIZE"]),))
rank, device = dist.get_rank(), mesh.device_type
data = zoo.load("digits", "train")
model = zoo.build("cnn", data.shape, data.classes, seed=0).to(device)
stamp = cs.Stamp.from_texts(["AB", "CD", "EF"], outputs=data.classes, shape=data.shape, seed=0)
back = cs.transpose(model, stamp.secrets[:1].to(device))
cs.harden(back, stamp, progress=False)

stamped = cs.Stamped(model, cs.StampLoss(back, stamp))
engine = fully_shard(stamped, mesh=mesh) if "fsdp" in sys.argv else DistributedDataParallel(stamped)
optimizer = torch.optim.Adam(engine.parameters(), lr=1e-3)
torch.manual_seed(rank)  # every process draws images and dropout of its own
for epoch in range(2):
    for images, labels in data.loader(32, seed=100 * epoch + rank):
        outputs, stamp_loss = engine(images.to(device))
        optimizer.zero_grad()
        (F.cross_entropy(outputs, labels.to(device)) + stamp_loss).backward()
        optimizer.step()
whole = zoo.build("cnn", data.shape, data.classes, seed=0).to(device)
whole.load_state_dict({k: getattr(w, "full_tensor", lambda w=w: w)() for k, w in model.state_dict().items()})
back = cs.transpose(whole, stamp.secrets[:1].to(device))
accuracy = cs.accuracy(whole, zoo.load("digits", "test").loader(250))
print(f"accuracy {accuracy:.3f}, SSIM {cs.read(back, stamp).ssim.mean():.3f}, bias {whole[-1].bias[0]:.9f}")
dist.destroy_process_group()
