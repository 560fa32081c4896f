"""Refusals: answers that say no to what they should help with, told from honest gaps and from good answers that "
"hold a "cannot".

In: the text of an answer. Out: whether it refuses, and whether it declines for want of knowledge. English, German, Ukrainian,
French and Spanish are built in; the settings add to them. An answer that says what it cannot do and then helps is no refusal.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from distill.dataset.handbook.articles import sentences
from distill.dataset.similarity import words
from distill.dataset.verifying.knowledge import content_of

_HELP = (
    r"(?:help|assist|answer|discuss|comply|fulfil+|engage|respond|participate|continue with|support (?:you|this"
    r"|that)|do (?:that|this)|"
    r"talk about|(?:give|provide|offer|share) (?:you |any |this |that |such |specific |legal |medical |financial )*"
    r"(?:help|advice|assistance|information|guidance|support|instructions|details|an answer|that|this)"
    r"|process (?:that|this|your) request|look into (?:this|that|it)(?: matter)?(?: for you)?)"
)
_SELF = r"(?:\bas an? (?:ai|artificial|large|language|virtual|automated|chat)\b[^.!?]{0,60})"
_REFUSING = (
    rf"{_SELF}(?:can't|cannot|can not|don't|do not|am not|unable|not able)",
    r"\bi(?:'m| am)? (?:only |just )?an? (?:ai|language model)\b",
    rf"\b(?:i|we)(?:'m| am|'re| are)? ?(?:really |very |truly |so )?(?:sorry,? ?(?:but )?(?:i|we)?)? ?"
    rf"(?:can't|cannot|can not|won't|will not|(?:'m|am|'re|are)? ?(?:unable to|not able to|not allowed to"
    rf"|not permitted to|not in a position to)"
    rf"|(?:won't|will not) be able to|must decline to|have to decline to|must refuse to)"
    rf" (?:currently |actually |directly |really |unfortunately )?{_HELP}\b",
    r"\b(?:i|we) (?:must|have to|need to) (?:respectfully |politely )?(?:decline|refuse)\b",
    r"\b(?:i|we) (?:refuse|decline) to\b|\bi(?:'d| would) (?:rather|prefer) not\b",
    r"\b(?:that|this|it)(?:'s| is) (?:not something (?:i|we) can|outside (?:of )?(?:my|our|the) scope|beyond (?:my"
    r"|our) (?:scope|capabilities))",
    r"\b(?:goes |is )?against (?:my|our) (?:policy|policies|guidelines|programming|principles|rules)\b",
    r"\bnot (?:able|allowed|permitted|authori[sz]ed) to (?:help|assist|answer|discuss|share|disclose|provide)\b",
    r"\bich kann (?:ihnen |dir )?(?:dabei|damit|hierbei|bei diesem \w+|dazu|das|diese \w+)? ?(?:leider )?(?:nicht"
    r"|keine \w+) "
    r"(?:helfen|weiterhelfen|beantworten|behilflich sein|unterstützen|geben|machen|tun)\b",
    r"\b(?:kann|darf) ich (?:ihnen |dir )?(?:leider )?(?:dabei |damit |hierbei |dazu |das )?(?:leider )?(?:nicht"
    r"|keine \w+) "
    r"(?:helfen|weiterhelfen|beantworten|behilflich sein|unterstützen|geben)\b",
    r"\bi (?:do not|don't) feel comfortable\b|\bi (?:do not|don't) have access to (?:that|this|it|such)\b|\bno can do\b",
    r"\bi must follow my (?:instructions|rules|guidelines)\b",
    r"\bkann ich (?:leider )?nicht (?:bearbeiten|erfüllen)\b|\b(?:übersteigt|überschreitet) (?:leider |das "
    r"|dies )*meine (?:möglichkeiten"
    r"|fähigkeiten|befugnisse|kompetenzen)\b|\bliegt (?:leider )?außerhalb meiner (?:möglichkeiten|befugnisse|zuständigkeit)\b",
    r"\bне уповноважен\w+|\b(?:поза|за) межами моїх (?:можливостей|повноважень)\b",
    r"\bdépasse mes (?:compétences|capacités)\b|\b(?:va más allá de|supera) mis (?:capacidades|posibilidades|competencias)\b",
    r"\bals (?:ki|künstliche intelligenz|sprachmodell)\b",
    r"(?:не можу|не зможу|не маю змоги|не в змозі|не маю права) (?:вам |тобі |з цим |на це |у цьому |в цьому |це |цього )*"
    r"(?:допомогти|відповісти|надати|обговорювати|виконати|зробити|розголошувати)",
    r"\bяк (?:штучний інтелект|мовна модель|ші)\b",
    r"\bje ne (?:peux|suis) (?:malheureusement )?pas (?:en mesure (?:de|d')|autorisée? à|capable de)? ?(?:vous "
    r"|répondre|aider|fournir|donner|discuter)",
    r"\ben tant qu'?(?:ia|intelligence|modèle|assistant)\b|\bje dois (?:décliner|refuser)\b",
    r"\bno (?:puedo|podemos|me es posible|estoy autorizad[oa] (?:a|para)) (?:ayudar|asistir|responder|proporcionar"
    r"|dar|hacer eso|contestar|atender)",
    r"\bcomo (?:ia|inteligencia|modelo de lenguaje|asistente virtual)\b|\bdebo (?:declinar|rechazar|negarme)\b",
)
# What is said around a refusal and helps nobody.
_PADDING = content_of(
    words(
        "sorry apologize apologies apology afraid unfortunately regret inconvenience understand understanding "
        "frustration help helping assist "
        "assistance further question request information support customer service team contact consult reach "
        "professional expert "
        "website official manufacturer provider appropriate relevant feel free let know else anything something "
        "happy glad thank thanks "
        "day nice great patience topic matter issue able unable ask other different instead kind sort type policy "
        "guidelines rules "
        "leider entschuldigung tut leid bitte wenden kundenservice kundendienst frage anliegen gern weitere hilfe "
        "вибачте вибачаюсь жаль на жаль зверніться служба підтримки питання запит допомога допомогти "
        "désolé désolée regrette veuillez contacter service client question demande aide autre "
        "siento lamento disculpe favor contacte servicio cliente pregunta solicitud ayuda otra"
    )
)
_FEWEST_WORDS_OF_HELP = 4
# Who hands over to a person has helped.
_HANDS_OVER = re.compile(
    r"\b(?:i|we)(?:'m| am|'re| are|'ll| will)? (?:now |gladly )?(?:pass|transfer|connect|forward|hand|put)(?:t?ing)?"
    r" (?:you|this|that|it)\b"
    r"|\ba colleague (?:will|can|takes|answers)\b|\bich (?:verbinde|leite)\b|\bя (?:передам|передаю|з'єдную|з'єднаю)\b"
)


def declines(text: str, phrases: Sequence[str]) -> bool:
    """Tell whether an answer says that it does not know."""
    said = _folded(text)
    return any(_folded(phrase) in said for phrase in phrases)


def refusal_in(text: str, further: Sequence[str] = ()) -> str | None:
    """Return the words with which an answer refuses, when it does little else; `further` are the settings' own phrases."""
    said = _folded(text)
    pattern = _refusing(tuple(further))
    found = pattern.search(said)
    if found is None:
        return None
    rest = " ".join(each for each in sentences(text) if not pattern.search(_folded(each)))
    # A refusing sentence that goes on to help ("…, but in the app you can") has its help behind a comma or a "but".
    helping = [
        clause
        for each in sentences(text)
        if (inside := pattern.search(_folded(each)))
        for clause in re.split(
            r"[,;:–—]|\bbut\b|\baber\b|\bmais\b|\bpero\b|\bале\b|\bhowever\b", _folded(each)[inside.end() :]
        )[1:]
    ]
    offered = content_of(words(" ".join([rest, *helping]))) - _PADDING
    return None if len(offered) >= _FEWEST_WORDS_OF_HELP or _HANDS_OVER.search(said) else found.group()


def is_wanted(topic: str, asked: str, policy_topics: Sequence[str]) -> bool:
    """Tell whether a refusal is what policy wants here: by the topic's name, or by a word that the customer has used."""
    said = _folded(asked)
    return any(
        _folded(each) == _folded(topic) or re.search(rf"(?<!\w){re.escape(_folded(each))}", said) is not None
        for each in policy_topics
        if each.strip()
    )


@lru_cache(maxsize=8)
def _refusing(further: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([*_REFUSING, *(re.escape(_folded(each)) for each in further if each.strip())]))


def _folded(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())
