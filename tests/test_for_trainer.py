"""`ForTrainer`: what the Trainer of transformers sees of a distiller."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import densekd
from densekd.errors import ArgumentError, DtypeError
from densekd.losses import ChannelWise, IntraClass


class Named(nn.Module):
    """Takes `pixel_values` and returns an object with `logits`, as networks of transformers do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)
        self.calls = 0

    def forward(self, pixel_values):
        self.calls += 1
        return SimpleNamespace(logits=self.head(self.body(pixel_values).relu()))


def task_loss(output, labels):
    return F.cross_entropy(output.logits, labels)


def made(loss=None):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 6, 8)
    terms = [densekd.Term(loss or ChannelWise(), student="output", teacher="output", weight=2.0)]
    distiller = densekd.Distiller(Named(4), Named(8), terms, example={"pixel_values": images})
    return densekd.ForTrainer(distiller, task_loss), images, torch.randint(0, 3, (2, 6, 8))


def test_in_training_it_is_the_task_and_the_terms():
    module, images, labels = made()
    found = module.train()(pixel_values=images, labels=labels)
    out = module.distiller(pixel_values=images)
    torch.testing.assert_close(found["loss"], task_loss(out.student, labels) + out.loss)
    torch.testing.assert_close(found["logits"], out.student.logits)
    assert module.parts["channelwise:output"] > 0


def test_in_evaluation_it_is_the_student_alone():
    module, images, labels = made()
    module.eval()
    before = module.distiller.teacher.calls
    found = module(pixel_values=images, labels=labels)
    assert module.distiller.teacher.calls == before
    torch.testing.assert_close(found["loss"], task_loss(module.distiller.student(images), labels))
    assert set(module(pixel_values=images)) == {"logits"}


def test_labels_go_to_a_term_that_reads_them():
    module, images, labels = made(IntraClass())
    assert torch.isfinite(module.train()(pixel_values=images, labels=labels)["loss"])
    with pytest.raises(ArgumentError, match="no labels in training: the data set needs a column `labels`"):
        module(pixel_values=images)


def test_the_columns_that_the_trainer_keeps():
    assert list(inspect.signature(densekd.ForTrainer.forward).parameters) == ["self", "pixel_values", "labels", "valid"]
    assert densekd.ForTrainer.accepts_loss_kwargs is False


def test_pixels_that_do_not_count():
    module, images, labels = made()
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[:, :, 4:] = False
    module.train()
    whole, part = (module(images, labels, mask)["loss"].item() for mask in (None, valid))
    assert whole != part


def test_mistakes():
    module, _, _ = made()
    with pytest.raises(DtypeError, match="needs a Distiller first, got a Named"):
        densekd.ForTrainer(module.distiller.student, task_loss)
    with pytest.raises(DtypeError, match=r"task_loss must be a function .* got None"):
        densekd.ForTrainer(module.distiller, None)


@pytest.mark.slow
def test_the_trainer_drops_other_columns_and_accumulates(tmp_path):
    """Two micro-batches of one image are one step of the mean gradient, as the Trainer's own networks have it."""
    transformers = pytest.importorskip("transformers")
    kept = []

    class Rows(torch.utils.data.Dataset):
        def __init__(self, images, labels):
            self.rows = [
                {"pixel_values": image, "labels": label, "file_name": "a.png", "pixel_mask": torch.ones(6, 8)}
                for image, label in zip(images, labels, strict=True)
            ]

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return self.rows[index]

    def trained(size, accumulate):
        module, images, labels = made()
        module.register_forward_pre_hook(lambda _, args, kwargs: kept.append(set(kwargs)), with_kwargs=True)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        transformers.Trainer(model=module, args=arguments, train_dataset=Rows(images, labels)).train()
        return module.distiller.student.state_dict()

    at_once, in_two = trained(2, 1), trained(1, 2)
    assert kept == [{"pixel_values", "labels"}] * 3
    for name, value in at_once.items():
        torch.testing.assert_close(in_two[name], value, rtol=1e-4, atol=1e-6)
