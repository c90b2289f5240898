"""Relations, the four losses and the banks in PyTorch, in two ways.

LOOPS: one anchor after another, every row of similarities sorted in full, labels written one by
one: how the method is usually written first. VECTORISED: the whole batch at once, with topk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
  """Cosine of every row of `a` with every row of `b`."""
  return F.normalize(a) @ F.normalize(b).T


def contrastive(images: torch.Tensor, texts: torch.Tensor, temperature: float) -> torch.Tensor:
  """InfoNCE, mean of both directions."""
  logits = cosine(images, texts) / temperature
  own = torch.arange(len(logits), device=logits.device)
  return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def matching(
  images: torch.Tensor,
  texts: torch.Tensor,
  labels: torch.Tensor,
  temperature: float,
  epsilon: float,
) -> torch.Tensor:
  """KL(p || q) of both directions; q is the row softmax of the labels, zeros left out."""
  target = torch.softmax(labels.masked_fill(labels == 0, -torch.inf), dim=1)
  log_target = torch.log(target + epsilon)
  logits = cosine(images, texts) / temperature
  loss = 0
  for rows in (logits, logits.T):
    log_p = torch.log_softmax(rows, dim=1)
    loss = loss + (log_p.exp() * (log_p - log_target)).sum(dim=1).mean()
  return loss


@torch.no_grad()
def local_labels_vectorised(
  images: torch.Tensor, texts: torch.Tensor, threshold: float, relation_label: float
) -> torch.Tensor:
  """Labels of the local relations of a batch: (B, B)."""
  related = (cosine(images, images) > threshold) & (cosine(texts, texts) > threshold)
  identity = torch.eye(len(images), device=images.device)
  return torch.maximum(identity, relation_label * related)


@torch.no_grad()
def local_labels_loops(
  images: torch.Tensor, texts: torch.Tensor, threshold: float, relation_label: float
) -> torch.Tensor:
  """As `local_labels_vectorised`, anchor by anchor."""
  image_scores, text_scores = cosine(images, images), cosine(texts, texts)
  labels = torch.eye(len(images), device=images.device)
  for i in range(len(images)):
    related = (image_scores[i] > threshold) & (text_scores[i] > threshold)
    for j in related.nonzero().flatten().tolist():
      if j != i:
        labels[i, j] = relation_label
  return labels


@torch.no_grad()
def extended_vectorised(
  images: torch.Tensor, image_bank: torch.Tensor, k: int, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
  """What the anchors mine, and the labels of the batch extended by it.

  Returns:
    (M,) mined bank rows and (B + M, B + M) labels, batch rows first.
  """
  best, nearest = torch.topk(cosine(images, image_bank), k + 1, dim=1)
  best, nearest = best[:, 1:], nearest[:, 1:]
  valid = best > threshold
  bracket = torch.cat([torch.ones_like(best[:, :1]), best.masked_fill(~valid, -torch.inf)], dim=1)
  weights = 1 - torch.softmax(bracket, dim=1)[:, 1:]
  own = torch.arange(len(images), device=images.device)
  group = torch.cat([own, valid.nonzero()[:, 0]])
  labels = (group[:, None] == group[None, :]).float()
  mined = torch.arange(len(images), len(group), device=images.device)
  labels[group[len(images) :], mined] = weights[valid]
  return nearest[valid], labels


@torch.no_grad()
def extended_loops(
  images: torch.Tensor, image_bank: torch.Tensor, k: int, threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
  """As `extended_vectorised`, anchor by anchor."""
  scores = cosine(images, image_bank)
  mined, groups, weights = [], [], []
  for i in range(len(images)):
    order = torch.argsort(scores[i], descending=True)
    neighbours = [j for j in order[1 : k + 1].tolist() if scores[i, j].item() > threshold]
    bracket = torch.tensor([1.0] + [scores[i, j].item() for j in neighbours])
    weights.append((1 - torch.softmax(bracket, dim=0))[1:].tolist())
    groups.append(list(range(len(images) + len(mined), len(images) + len(mined) + len(neighbours))))
    mined += neighbours
  labels = torch.eye(len(images) + len(mined), device=images.device)
  for i, group in enumerate(groups):
    for member, weight in zip(group, weights[i], strict=True):
      labels[i, member] = weight
      for other in (i, *group):
        labels[member, other] = 1.0
  return torch.tensor(mined, dtype=torch.long, device=images.device), labels


@torch.no_grad()
def update_vectorised(
  bank: torch.Tensor, index: torch.Tensor, features: torch.Tensor, momentum: float
) -> None:
  """Moves the batch's own rows toward its features, in place."""
  bank[index] = momentum * features + (1 - momentum) * bank[index]


@torch.no_grad()
def update_loops(
  bank: torch.Tensor, index: torch.Tensor, features: torch.Tensor, momentum: float
) -> None:
  """As `update_vectorised`, row by row."""
  for row, feature in zip(index.tolist(), features, strict=True):
    bank[row] = momentum * feature + (1 - momentum) * bank[row]


WAYS = {
  "loops": (local_labels_loops, extended_loops, update_loops),
  "vectorised": (local_labels_vectorised, extended_vectorised, update_vectorised),
}


def losses(
  clean: Any,
  distorted: Any,
  image_bank: torch.Tensor,
  text_bank: torch.Tensor,
  config: ConfigDict,
  way: str,
) -> dict[str, torch.Tensor]:
  """The four losses of a batch.

  Args:
    clean, distorted: (images, texts), each (B, D), of the two views.
    image_bank, text_bank: (N, D).
    config: the run's config.
    way: "loops" or "vectorised".

  Returns:
    {"itc", "local", "global", "consistency"}: scalars.
  """
  local_labels, extended, _ = WAYS[way]
  local, anchors = config.local_association, config.global_association
  temperature, epsilon = config.loss.temperature, config.loss.epsilon

  def association(images, texts):
    labels = local_labels(images, texts, local.threshold, local.relation_label)
    return matching(images, texts, labels, temperature, epsilon)

  images, texts = clean
  mined, labels = extended(images, image_bank, anchors.k, anchors.threshold)
  more_images = torch.cat([images, image_bank[mined]])
  more_texts = torch.cat([texts, text_bank[mined]])
  return {
    "itc": contrastive(images, texts, temperature),
    "local": association(images, texts),
    "global": matching(more_images, more_texts, labels, temperature, epsilon),
    "consistency": association(*distorted),
  }
