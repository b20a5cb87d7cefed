"""A model's encoder, and the wording of the requests for critiques, revisions and judgements."""

from __future__ import annotations

from rlhf_lightning.constitutions.rendering import EnglishPhrasing, Phrasing
from rlhf_lightning.data.chat_template import DEFAULT_CHAT_TEMPLATE
from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_tokenizer
from rlhf_lightning.settings.data import CourtesyData
from rlhf_lightning.stages.context import StageContext
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing


def phrasing_for(settings: RunSettings, phrasing: str, fewshots: str, is_plain: bool) -> Phrasing:
    """English, or the courtesy world's own words.

    Args:
        phrasing: `english`, `world`; `auto`: the world's where the data is its.
        fewshots: `always`, `never`; `auto`: for a plain model.
        is_plain: the model has no chat template of its own.
    """
    speaks_world = isinstance(settings.data, CourtesyData) if phrasing == "auto" else phrasing == "world"
    with_examples = is_plain if fewshots == "auto" else fewshots == "always"
    return CourtesyPhrasing() if speaks_world else EnglishPhrasing(fewshots=with_examples)


def open_encoder(context: StageContext, source: ModelSource) -> tuple[Encoder, bool]:
    """A model's encoder, and True if the model has no chat template of its own.

    The flag is read before the encoder adds a template, which a stage saves with the model that it trains: a plain
    model stays plain after training.
    """
    tokenizer = load_tokenizer(source)
    is_plain = tokenizer.chat_template in (None, DEFAULT_CHAT_TEMPLATE)
    return Encoder(tokenizer, context.settings.data), is_plain
