"""Train a small ResNet on Fashion-MNIST, or on scikit-learn's digits where Fashion-MNIST is not at hand.

python resnet_argparse.py --data ~/data/fashion-mnist --epochs 10
python resnet_argparse.py --fake
"""

import argparse
import gzip
import math
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
WIDTHS = {"resnet8": (1, 1, 1), "resnet14": (2, 2, 2)}


def parse_args():
    parser = argparse.ArgumentParser(description="Small ResNets on small images")
    parser.add_argument("--data", default=os.environ.get("FASHION_MNIST", "data"), help="folder of the four .gz files of Fashion-MNIST")
    parser.add_argument("--fake", action="store_true", help="use the digits of scikit-learn, which need no files")
    parser.add_argument("--limit", type=int, help="train on the first so many images only")
    parser.add_argument("--arch", choices=sorted(WIDTHS), default="resnet8")
    parser.add_argument("--width", type=int, default=8, help="channels of the first stage")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("-b", "--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1, help="peak learning rate")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--wd", "--weight-decay", type=float, default=5e-4, dest="weight_decay")
    parser.add_argument("--warmup-epochs", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for checkpoint.pt")
    return parser.parse_args()


def read_idx(path):
    with gzip.open(path, "rb") as f:
        data = f.read()
    ndim = data[3]
    shape = np.frombuffer(data, dtype=">i4", count=ndim, offset=4)
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def load_data(args):
    """Train, validation and test sets: the same images whatever the seed."""
    paths = [Path(args.data) / f"{name}.gz" for name in FILES]
    if not args.fake and all(path.exists() for path in paths):
        images, labels, test_images, test_labels = (read_idx(path) for path in paths)
        images, test_images = images.unsqueeze(1) / 255, test_images.unsqueeze(1) / 255
        num_train = 55000
    else:
        from sklearn.datasets import load_digits

        if not args.fake:
            print(f"no Fashion-MNIST in {args.data!r}, using digits")
        digits = load_digits()
        order = np.random.RandomState(0).permutation(len(digits.target))
        images = torch.tensor(digits.images[order], dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(digits.target[order])
        images, test_images = images[:1497], images[1497:]
        labels, test_labels = labels[:1497], labels[1497:]
        num_train = 1280
    mean, std = images[:num_train].mean(), images[:num_train].std()
    images, test_images = (images - mean) / std, (test_images - mean) / std
    train = TensorDataset(images[:num_train][: args.limit], labels[:num_train][: args.limit].long())
    val = TensorDataset(images[num_train:], labels[num_train:].long())
    return train, val, TensorDataset(test_images, test_labels.long())


class BasicBlock(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential()
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, blocks, width, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        layers, cin = [], width
        for stage, count in enumerate(blocks):
            cout = width * 2**stage
            for block in range(count):
                layers.append(BasicBlock(cin, cout, stride=2 if stage > 0 and block == 0 else 1))
                cin = cout
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(cin, num_classes)

    def forward(self, x):
        out = self.layers(self.stem(x))
        return self.fc(out.mean(dim=(2, 3)))


def train_epoch(model, loader, optimizer, scheduler, device):
    model.train()
    total, seen = 0.0, 0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item() * len(labels)
        seen += len(labels)
    return total / seen


@torch.no_grad()
def evaluate(model, loader, device):
    model.eval()
    correct = sum((model(images.to(device)).argmax(1) == labels.to(device)).sum().item() for images, labels in loader)
    return 100 * correct / len(loader.dataset)


def main():
    args = parse_args()
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    train_set, val_set, test_set = load_data(args)
    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True, num_workers=args.workers)
    val_loader = DataLoader(val_set, batch_size=512)
    test_loader = DataLoader(test_set, batch_size=512)

    model = ResNet(WIDTHS[args.arch], args.width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    total_steps = args.epochs * len(train_loader)
    warmup_steps = round(args.warmup_epochs * len(train_loader))

    def lr_lambda(step):
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda)

    print(args)
    print(f"{len(train_set)} training images, {sum(p.numel() for p in model.parameters())} parameters")
    for epoch in range(1, args.epochs + 1):
        train_loss = train_epoch(model, train_loader, optimizer, scheduler, device)
        val_acc = evaluate(model, val_loader, device)
        print(f"Epoch {epoch} | train loss {train_loss:.4f} | val acc {val_acc:.2f}", flush=True)
    print(f"test_acc {evaluate(model, test_loader, device):.2f}")

    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        torch.save({"model": model.state_dict(), "args": vars(args)}, args.out / "checkpoint.pt")


if __name__ == "__main__":
    main()
