"""Presidio, set up to work without a network and, unless a spaCy model is named, without a language model.

In: which sorts to look for. Out: a function from a text to spans. Importing this takes seconds and loads spaCy, and torch where it is
installed: nothing imports it but the second pass, when it runs.
"""

from collections.abc import Callable, Iterator, Sequence

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerRegistry
from presidio_analyzer.nlp_engine import NerModelConfiguration, NlpArtifacts, SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    CryptoRecognizer,
    EmailRecognizer,
    EsNifRecognizer,
    IbanRecognizer,
    IpRecognizer,
    ItFiscalCodeRecognizer,
    PhoneRecognizer,
    SpacyRecognizer,
    UkNinoRecognizer,
    UkPassportRecognizer,
    UsItinRecognizer,
    UsPassportRecognizer,
    UsSsnRecognizer,
)

# Presidio asks for a language with each text; ours are mixed, and none of its patterns depends on it.
_LANGUAGE = "en"
# A shape by itself scores 0.5 or more where it is telling, 0.05 to 0.4 where it is not; a context word adds 0.35.
_LEAST_SCORE = 0.44
# Nine digits are a passport's after that word alone, which makes 0.05 into 0.4: also what a phone number has without any word.
_LEAST_SCORES = {"US_PASSPORT": 0.39}
# Presidio's own list has "number" among them, which stands before order numbers too.
_PHONE_WORDS = [
    "phone",
    "telephone",
    "cell",
    "cellphone",
    "mobile",
    "tel",
    "call",
    "fax",
    "телефон",
    "тел",
    "моб",
    "дзвоніть",
]
_PASSPORT_WORDS = ["passport", "паспорт", "паспорта"]
# A longer text is read in pieces: a language model's memory grows with it.
_LONGEST_PIECE = 20_000


class _Engine(SpacyNlpEngine):  # type: ignore[misc]
    """A spaCy pipeline that is there already; where it has no lemmas, the words themselves stand for them."""

    def __init__(self, pipeline: spacy.Language) -> None:
        super().__init__(
            models=[{"lang_code": _LANGUAGE, "model_name": "given"}],
            ner_model_configuration=NerModelConfiguration(
                labels_to_ignore=["CARDINAL", "ORDINAL", "QUANTITY", "PERCENT", "MONEY", "WORK_OF_ART", "LAW", "EVENT", "PRODUCT",
                                  "LANGUAGE", "MISC", "FAC", "ORG", "GPE", "LOC", "NORP", "DATE", "TIME"],
                low_score_entity_names=[],
            ),
        )  # fmt: skip
        self.nlp = {_LANGUAGE: pipeline}

    def load(self) -> None:
        """Load nothing; Presidio would download a model."""

    def process_text(self, text: str, language: str) -> NlpArtifacts:
        """Return what the pipeline says of a text."""
        read = super().process_text(text, language)
        return NlpArtifacts(
            entities=read.entities,
            tokens=read.tokens,
            tokens_indices=read.tokens_indices,
            lemmas=[token.lemma_ or token.lower_ for token in read.tokens],
            nlp_engine=self,
            language=language,
            scores=read.scores,
        )


class _OfflineEmailRecognizer(EmailRecognizer):  # type: ignore[misc]
    """Presidio's, with the list of public suffixes that tldextract ships instead of the one that it downloads."""

    _suffixes = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def validate_result(self, pattern_text: str) -> bool:
        """Tell whether the address ends in a public suffix."""
        return bool(self._suffixes(pattern_text).fqdn)


def open_analyser(
    entities: Sequence[str], regions: Sequence[str], spacy_model: str
) -> Callable[[str], Iterator[tuple[int, int, str]]]:
    """Return a function that yields the spans of a text, each with Presidio's name for what it is.

    Without a spaCy model no names are looked for. The model must be installed.
    """
    engine = _Engine(spacy.load(spacy_model) if spacy_model else spacy.blank(_LANGUAGE))
    recognizers: list[EntityRecognizer] = [
        _OfflineEmailRecognizer(),
        PhoneRecognizer(
            context=_PHONE_WORDS, supported_regions=tuple(dict.fromkeys([*regions, "US", "GB", "DE", "FR", "UA"]))
        ),
        CreditCardRecognizer(),
        IbanRecognizer(),
        IpRecognizer(),
        CryptoRecognizer(),
        UsSsnRecognizer(),
        UsItinRecognizer(),
        UsPassportRecognizer(context=_PASSPORT_WORDS),
        UkPassportRecognizer(context=_PASSPORT_WORDS),
        UkNinoRecognizer(),
        ItFiscalCodeRecognizer(),
        EsNifRecognizer(),
    ]
    for recognizer in recognizers:
        # Spain's and Italy's are registered for their own languages.
        recognizer.supported_language = _LANGUAGE
    if spacy_model:
        recognizers.append(SpacyRecognizer(supported_entities=["PERSON"]))
    registry = RecognizerRegistry(recognizers=recognizers, supported_languages=[_LANGUAGE])
    analyser = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[_LANGUAGE])
    wanted = [each for each in entities if spacy_model or each != "PERSON"]

    def analyse(text: str) -> Iterator[tuple[int, int, str]]:
        for start, piece in _pieces(text):
            for found in analyser.analyze(piece, _LANGUAGE, entities=wanted, score_threshold=min(_LEAST_SCORES.values())):
                if found.score >= _LEAST_SCORES.get(found.entity_type, _LEAST_SCORE):
                    yield start + found.start, start + found.end, found.entity_type

    return analyse


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yield a text in pieces with where each begins, cut at a space where there is one."""
    start = 0
    while start < len(text):
        end = start + _LONGEST_PIECE
        if end < len(text):
            end = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end)) + 1 or end
        yield start, text[start:end]
        start = end
