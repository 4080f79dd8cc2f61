"""Features of images in place of tokens, compared with the whole model's own run."""

from __future__ import annotations

import pytest
import torch

from optimum_ishrink.architectures.composite import composites
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.errors import DataError
from optimum_ishrink.importance.batches import Batch
from optimum_ishrink.importance.engine import backward
from optimum_ishrink.modeling.layerwise import enter_layers
from optimum_ishrink.text.image_features import check_order, encode_images, images_in
from tests.helpers.tiny_composites import CASES, composite_config, composite_model, image_question

READ = [(name, variant) for name, variant in CASES if composites()[name].text_only is None]


def test_most_models_read_images_and_none_without_a_reason_does_not() -> None:
    assert len({name for name, _ in READ}) >= 13
    assert {"llava", "smolvlm", "idefics3", "mistral3", "internvl", "lfm2_vl"} <= {name for name, _ in READ}


@pytest.mark.parametrize(("model_type", "variant"), READ)
def test_features_in_place_of_tokens_are_the_model_with_its_image(model_type: str, variant: int) -> None:
    model = composite_model(composite_config(model_type, variant))
    question = image_question(model, variant)
    check_order(model, question, "the row")
    ids, features = encode_images(model, question, 7)
    image = question["input_ids"][0] == model.config.image_token_id
    assert torch.equal(ids < 0, image) and int(image.sum()) == len(features) > 0
    assert torch.equal(ids[~image], question["input_ids"][0][~image])
    assert (-1 - ids[image]).tolist() == list(range(7, 7 + len(features)))
    padded = torch.cat([torch.zeros(7, features.shape[1]), features])
    with torch.no_grad():
        wanted = model(**question).logits
        with images_in(model, padded):
            assert torch.equal(model(input_ids=ids[None]).logits, wanted)
        assert not torch.equal(model(input_ids=question["input_ids"]).logits, wanted)
        with pytest.raises(IndexError):  # nothing takes an image for a text once the model has lost sight of it
            model(input_ids=ids[None])


@pytest.mark.parametrize("model_type", ["gemma3", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_model_that_reads_images_otherwise_is_told(model_type: str) -> None:
    assert composites()[model_type].text_only is not None
    model = composite_model(composite_config(model_type))
    with pytest.raises(
        DataError, match=rf"row 3: {model_type} reads an image otherwise than token after token .*text"
    ):
        check_order(model, image_question(model), "row 3")


def test_no_loss_is_counted_for_parts_of_an_image() -> None:
    model = composite_model(composite_config("llava"))
    question = image_question(model)
    image = question["input_ids"] == model.config.image_token_id
    labels = question["input_ids"].masked_fill(image, -100)
    weight = model.model.language_model.layers[1].mlp.up_proj.weight
    wanted = model(**question, labels=labels).loss
    (gradient,) = torch.autograd.grad(wanted, weight)
    ids, features = encode_images(model, question, 0)
    model.requires_grad_(False)
    weight.requires_grad_(True)
    with images_in(model, features):
        loss = backward(model, Batch(ids[None], torch.ones_like(ids[None])), seed=None)
    torch.testing.assert_close(loss, wanted.item())
    torch.testing.assert_close(weight.grad, gradient)


def test_next_tokens_are_drawn_where_text_follows() -> None:
    ids = torch.tensor([[5, 6, -1, -2, 7, 8], [5, 6, 7, 8, -3, -4]])
    mask = torch.ones_like(ids)
    mask[0, 5] = 0
    batch = Batch(ids, mask)
    assert batch.drawn.tolist() == [[1, 0, 0, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    assert batch.predicted.int().tolist() == [[1, 0, 0, 1, 0], [1, 1, 1, 0, 0]]
    assert batch.tokens == 11


def test_layers_are_entered_with_images() -> None:
    config = composite_config("smolvlm")
    model = composite_model(config)
    question = image_question(model)
    ids, features = encode_images(model, question, 0)
    with torch.no_grad():
        wanted = model(**question, output_hidden_states=True).hidden_states[0]
        with images_in(model, features):
            (entering,), _ = enter_layers(model, bind_config(config.to_dict())[1], [ids[None]])
    assert torch.equal(entering, wanted)


def test_a_model_sees_as_before_afterwards() -> None:
    model = composite_model(composite_config("llava"))
    embedding = model.get_input_embeddings()
    with images_in(model, None):
        assert not embedding._forward_hooks and not embedding._forward_pre_hooks
    with images_in(model, torch.zeros(1, 32)):
        assert embedding._forward_hooks
    assert not embedding._forward_hooks and not embedding._forward_pre_hooks
