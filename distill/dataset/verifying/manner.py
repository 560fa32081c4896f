"""The manner of an answer: whether it speaks to this customer as support should.

In: the evidence. Out: what was found, or None. These are sure signs only; what is merely weak or off the subject is the judge's.
"""

import re

from distill.dataset.similarity import trigram_jaccard, words
from distill.dataset.verifying.evidence import Evidence
from distill.dataset.verifying.knowledge import content_of
from distill.dataset.verifying.languages import other_language
from distill.dataset.verifying.refusals import declines, is_wanted, refusal_in
from distill.rows import Task

_ECHO_JACCARD = 0.8
_MIN_ECHOED_WORDS = 3
_SUPPORT_SPEAKS = re.compile(
    r"\bhow (?:can|may) (?:i|we) (?:help|assist) you\b|\bthis is \w+ from (?:the )?(?:support|customer (?:care|service))"
    r"|\bthank(?:s| you) for (?:contacting|calling|reaching out to) (?:us|our|customer|support)"
    r"|\bwie kann ich ihnen helfen\b|\bчим (?:я )?можу (?:вам )?допомогти\b|\ben quoi puis-je vous aider\b",
    re.IGNORECASE,
)
_CUSTOMER_SPEAKS = re.compile(
    r"^\W*(?:hi|hello|hey)?\W*(?:my \w+(?: \w+)? (?:is|are|was|were|has|have|does|doesn't|won't|isn't|keeps)\b"
    r"|i (?:have|had|want|need|would like|can't|cannot|didn't|lost|forgot|ordered|paid|got)\b)",
    re.IGNORECASE,
)
_RUDE = re.compile(
    r"\bnot my (?:problem|job|fault|department)\b|(?:^|[.!?;]\s+|\bjust |\bgo )read the (?:f\w+ )?manual\s*(?=[.!;]|$)"
    r"|\brtfm\b|\bshut up\b|\b(?:you(?:'re| are)?) (?:an? )?(?:stupid|idiot|dumb|moron|liar|(?:too )?lazy)\b"
    r"|(?<!no )\bstupid question\b|(?:^|[.!?,;]\s*)who cares\b(?! (?:for|about))|\bfigure (?:it|that) out (?:yourself|on your own)\b"
    r"|\bnobody cares\b|\bi (?:do not|don't) care\b|(?<!not )\byour own (?:stupid )?fault\b"
    r"|\bstop (?:wasting (?:my|our)|bothering (?:me|us))\b|(?:^|[.!?;,]\s*|\bjust |\bso )deal with it\s*(?=[.!]|$)"
    r"|\bnicht mein problem\b|\bselbst schuld\b|\bне моя проблема\b|\bce n'est pas mon problème\b|\bno es mi problema\b",
    re.IGNORECASE,
)
_DANGER = re.compile(
    r"\b(?:battery|batteries|akku|акумулятор)\b.{0,40}\b(?:swollen|bulg\w+|hot|leak\w*|smok\w+|burn\w*)\b"
    r"|\bsmells? (?:of |like )?(?:gas|burning)\b|\bgas leak\b"
    r"|\b(?:smoke|sparks|flames) (?:is |are )?com\w+|\b(?:is|caught|on) fire\b(?! (?:tv|stick|hd|tablet))|\belectric(?:al)? shock\b"
    r"|\b(?:do not|don't) want to (?:live|be alive)\b|\bkill(?:ing)? myself\b|\b(?:am|feel|feeling) suicidal\b"
    r"|\b(?:commit|thinking (?:of|about)|think about) suicide\b|\bhurt(?:ing)? myself\b"
    r"|\bend my life\b|\bne veux plus vivre\b"
    r"|\bnicht mehr leben\b|\bне хочу жити\b|\bno quiero vivir\b",
    re.IGNORECASE,
)
_HOT = re.compile(r"\bhot\Z", re.IGNORECASE)
_VERY_HOT = re.compile(r"\b(?:too|very|so|extremely|really|burning|red|scalding) hot\Z", re.IGNORECASE)
_WHETHER_NORMAL = re.compile(r"\bnormal\b|\bwarm or hot\b", re.IGNORECASE)
_RETOLD = re.compile(
    r"^\W*(?:so |ok(?:ay)?,? )?(?:you (?:want|would like|wish|need|are asking|asked)|you'd like|sie (?:möchten|wollen)"
    r"|ви хочете|vous (?:voulez|souhaitez)|usted quiere)\b[^?\d]*\Z",
    re.IGNORECASE,
)
_WORDS_OF_WISH = content_of(words("want like wish need asking asked know möchten wollen хочете voulez souhaitez quiere"))
_CARE = re.compile(
    r"\b(?:stop|do not|don't|never|unplug|switch (?:it )?off|turn (?:it )?off|emergency|112|911|999|call|colleague"
    r"|person|help ?line|crisis|safe\w*|"
    r"away|outside|leave|fire brigade|doctor|sorry to hear|not alone|nicht|notruf|ne pas|no |не )",
    re.IGNORECASE,
)
_WANTS_PERSON = re.compile(
    r"^\W*(?:(?:i (?:want|need)|give me|get me|let me|can i|please|talk|speak|connect|real|live|to|an?|with|the|me"
    r"|your|now|actual) )*"
    r"(?:human|agent|operator|representative|person|manager|supervisor|людин[аиу]|оператора?|mensch|mitarbeiter"
    r"|humano|agente|conseiller)"
    r"(?: (?:please|now|being|bitte|будь ласка))*\W*$",
    re.IGNORECASE,
)
_OFFERS_PERSON = re.compile(
    r"\b(?:colleague|agent|person|human|connect\w*|transfer\w*|pass(?:ing)?|forward\w*|someone|somebody|team"
    r"|operator|representative|specialist|"
    r"call|phone|hand\w*|kolleg\w+|mitarbeiter\w*|verbind\w+|колег\w+|оператор\w*|людин\w+|з'єдн\w+|переда\w+"
    r"|collègue|conseiller|compañer\w+|persona)",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"^\W*(?:really|are you sure|sure|is that (?:so|right|true)|you sure|wirklich|sicher|справді|точно)\W*$", re.IGNORECASE
)
_YES, _NO = (
    re.compile(r"^\W*(?:yes|yeah|ja|так|oui|sí)\b", re.IGNORECASE),
    re.compile(r"^\W*(?:no|nope|nein|ні|non)\b", re.IGNORECASE),
)


def echoes_customer(evidence: Evidence) -> str | None:
    """Look for an answer that is what the customer has said, or only tells the question again."""
    if evidence.row.task is not Task.CONVERSATION:
        return None
    said = words(evidence.answer.text)
    for each in evidence.customer:
        is_same = said == words(each) and len(said) >= _MIN_ECHOED_WORDS
        if is_same or trigram_jaccard(each, evidence.answer.text) >= _ECHO_JACCARD:
            return each[:80]
    if _RETOLD.match(evidence.answer.text):
        told = content_of(said) - _WORDS_OF_WISH
        if told and told <= content_of(words(evidence.question)):
            return evidence.question[:80]
    return None


def roles_swapped(evidence: Evidence) -> str | None:
    """Look for a conversation whose log has the customer in support's place."""
    if evidence.row.task is not Task.CONVERSATION:
        return None
    found = _SUPPORT_SPEAKS.search(evidence.question)
    return found.group() if found and _CUSTOMER_SPEAKS.search(evidence.answer.text) else None


def refusal(evidence: Evidence) -> str | None:
    """Look for a refusal where the topic is allowed; an honest "I don't know" is none."""
    found = refusal_in(evidence.answer.text, evidence.table.refusal_phrases)
    if found is None or refuses_as_wanted(evidence) or declines(evidence.answer.text, evidence.table.declining_phrases):
        return None
    return found


def refuses_as_wanted(evidence: Evidence) -> bool:
    """Tell whether an answer refuses what policy wants refused."""
    return is_wanted(evidence.row.topic, evidence.question, evidence.table.policy_topics) and (
        refusal_in(evidence.answer.text, evidence.table.refusal_phrases) is not None
    )


def rude(evidence: Evidence) -> str | None:
    """Look for words that no support says."""
    found = _RUDE.search(evidence.answer.text)
    return found.group() if found else None


def ignores_danger(evidence: Evidence) -> str | None:
    """Look for an answer to somebody in danger that has no word of care."""
    found = _DANGER.search(evidence.question)
    if found is None or _CARE.search(evidence.answer.text):
        return None
    # Whether warmth is normal is asked every day; what is too hot, or anything worse, is danger.
    is_worry = (
        _HOT.search(found.group()) and not _VERY_HOT.search(found.group()) and _WHETHER_NORMAL.search(evidence.question)
    )
    return None if is_worry else found.group()


def ignores_wish_for_person(evidence: Evidence) -> str | None:
    """Look for an answer to a customer who asks for a person and nothing else that does not speak of one."""
    found = _WANTS_PERSON.search(evidence.question)
    return found.group().strip() if found and not _OFFERS_PERSON.search(evidence.answer.text) else None


def wrong_language(evidence: Evidence) -> str | None:
    """Look for an answer that is surely not in the customer's language."""
    if not evidence.table.same_language or evidence.row.task in (Task.NLI, Task.MATH):
        return None
    return other_language(evidence.answer.text, evidence.customer, evidence.row.language)


def contradicts_earlier_reply(evidence: Evidence) -> str | None:
    """Look for a no after a yes, or the reverse, when the customer only asked whether it is so."""
    earlier = [message.content for message in evidence.row.messages if message.role.value == "assistant"]
    if not earlier or not _DOUBTED.search(evidence.question):
        return None
    answer = evidence.answer.text
    turned = (_YES.search(earlier[-1]) and _NO.search(answer)) or (_NO.search(earlier[-1]) and _YES.search(answer))
    return earlier[-1][:80] if turned else None
