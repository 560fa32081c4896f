"""Answers to the demo's handbook, good and with one known defect each, written by hand and varied by templates."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.dataset.handbook.articles import Handbook

HANDBOOK = Path(__file__).parents[2] / "deploy" / "demo" / "handbook"
PROMPT = (
    "You are the support assistant of Tidewell, a home-internet provider. Never promise a refund that the handbook does not name. "
    "Keep internal codes to yourself and answer in the language of the customer."
)
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "book_visit",
                "parameters": {
                    "type": "object",
                    "properties": {"day": {"type": "string", "enum": ["monday", "friday"]}, "hour": {"type": "integer"}},
                    "required": ["day"],
                    "additionalProperties": False,
                },
            },
        }
    ]
)


@dataclass(frozen=True)
class Planted:
    """A question, an answer, and the reason why it must not be learnt; empty where it must be."""

    question: str
    text: str
    reason: str = ""
    topic: str = ""
    cites: str = ""
    finish_reason: str = "stop"
    tools_json: str = ""
    extra_json: str = ""


QUESTIONS = {
    "app-closes": "Your app closes by itself every time I open it, what can I do?",
    "buoy-pairing": "My new Buoy does not want to join the box, how is it done?",
    "cancel-contract": "How do I cancel my contract and what does it cost me?",
    "coral-light": "The light on the box glows coral and nothing loads at all",
    "dead-room": "There is no signal in our back bedroom, what would help there?",
    "debit-day": "Can you take the money on another day of the month?",
    "evening-slow": "Every evening the internet gets terribly slow at our place",
    "first-bill": "Why is my first bill so much higher than you told me?",
    "game-ports": "My console reports a strict NAT and friends cannot join me",
    "late-fee": "I forgot to pay the last bill, is there a fee for that?",
    "login-code": "I wait for the sign-in code and it never gets here",
    "missed-visit": "Your technician never turned up although I waited all day",
    "moving-no-cover": "You have no network at my new address, how do I get out?",
    "moving": "We move house in spring, can the line come with us?",
    "no-lights": "The box is completely dark, no lamp is on at all",
    "outage-credit": "Internet was out for a whole day, do I get money back?",
    "pause-service": "I will be abroad for some months, can I pause my line?",
    "refund": "You owe me a refund, when will it be on my account?",
    "return-kit": "Where do I send the old equipment back to you?",
    "smart-devices": "My smart bulbs do not find the network of the box",
    "video-calls": "Video calls freeze whenever others are online here",
    "violet-pulse": "The light pulses violet and I do not know what that means",
    "wifi-password": "Where do I find the password of my network?",
    "work-vpn": "The VPN of my employer drops all the time on your line",
}  # fmt: skip
_OPENINGS = (
    "{}",
    "Thanks for waiting! {}",
    "I understand, that is annoying. {}",
    "Good morning, and thanks for writing. {} Anything else?",
    "Sure. {} Let me know how it goes!",
)  # fmt: skip

# Good answers that look odd: other words for the same numbers, lists, questions back, fragments, courtesy, other languages.
HAND_WRITTEN = (
    ("late-fee", "No worries! The late fee is 6.35 € and only starts on day 16."),
    ("late-fee", "There's a €6,35 fee from the 16th day; after 30 days you'd drop to 2 Mbit/s."),
    ("late-fee", "Yes, sadly: €6.35. It isn't charged before the sixteenth day, though."),
    ("late-fee", "Nothing is lost yet. Pay before the 16th day of delay and there is no late fee at all."),
    ("violet-pulse", "It's only an update. Don't unplug the Harbour 3; give it up to 19 minutes."),
    ("violet-pulse", "Please leave the plug where it is. An update runs for up to nineteen minutes."),
    ("violet-pulse", "1. Wait up to 19 minutes.\n2. Still pulsing after 40 minutes? Press the reset pin for 14 seconds."),
    (
        "coral-light",
        "Step 1: push the slate-grey plug in until it clicks twice.\nStep 2: wait 6 minutes.\nStep 3: run line test LT-38.",
    ),
    ("coral-light", "- plug in (two clicks)\n- wait six minutes\n- still coral? LT38 in the app"),
    ("coral-light", "**Coral** means the fibre signal is lost. Push the plug in until it clicks twice; wait 6 minutes."),
    ("work-vpn", "Set the MTU to `1436` and switch off Hull Shield for that computer."),
    ("work-vpn", "MTU: 1436. Hull Shield: off. If that's not it: port 4512 must be opened by your employer."),
    ("work-vpn", "Which computer is it? For a work computer, set the MTU to 1436 and switch Hull Shield off."),
    ("refund", "It takes 12 working days. Look for a reference that starts with RB-."),
    ("refund", "Twelve working days. If it's under €8 it will be on your next bill."),
    (
        "refund",
        "I can't see your bank account from here, but a refund takes 12 working days and its reference begins with RB-.",
    ),
    ("return-kit", "Drop everything at a Pelican locker within three weeks (21 days) after your contract has ended."),
    ("return-kit", "A Pelican locker will do. You have 21 days; afterwards €84 is charged."),
    ("pause-service", "Yes! Mooring costs €1.85 a month, for at most 5 months. Start it six days ahead, please."),
    ("pause-service", "Use Mooring: 1.85 euros a month, five months at most."),
    ("moving", "Of course it can. Enter the new address under Set Sail at least 23 days before; it costs 17.25 €."),
    ("moving", "You can take it with you 🙂 Set Sail in the app, 23 days ahead, €17.25."),
    ("moving-no-cover", "I'm sorry we can't come along! Send form M-52 within 45 days and leave without penalty."),
    ("moving-no-cover", "You may leave without penalty: form M-52, within 45 days, with a proof no older than 60 days."),
    ("debit-day", "Bills > Pay Tide > pick the 4th, 14th or 24th. At least 9 days before the next debit, please."),
    ("debit-day", "| where | what |\n|---|---|\n| Bills, Pay Tide | 4th, 14th or 24th |\n\nDo it 9 days before the debit."),
    ("first-bill", "That's the one-off activation fee of €29.60 plus the days until the 21st. It won't happen again."),
    ("first-bill", "Only the first one: €29.60 for activation. From the second bill on it's the normal price."),
    ("game-ports", "Open Harbour Gate, choose Play-6, and give the console the address ending in 77."),
    ("game-ports", "Do you use Harbour Gate already? Choose its profile Play-6, then the address ending in 77."),
    ("buoy-pairing", "Hold its top for 7 s until it's lime. Max. 75 cm from the box!"),
    ("buoy-pairing", "Seven seconds on the top, until it turns lime, and no further than 75 cm away."),
    ("dead-room", "A Buoy helps (€3.70 a month): at most 9 metres from the box and 1.3 metres above the floor."),
    ("dead-room", "Sounds like a job for a Buoy. Is there a shelf at least 1.3 metres up, within 9 metres of the box?"),
    ("evening-slow", "Please switch on Night Current. Eight minutes later you should be on channel 44."),
    ("evening-slow", "Try Night Current in the app; nothing else has to be changed."),
    ("login-code", "Please allow the number 40417. Codes last 11 minutes; after too many tries you wait 25 minutes."),
    ("login-code", "They come from 40417. Your code is not valid any more after 11 minutes."),
    (
        "missed-visit",
        "We are sorry! Report it within 10 days, you get €31, and somebody comes within three days (72 hours).",
    ),
    ("missed-visit", "That should not happen. €31 compensation is yours if you report it within 10 days."),
    ("no-lights", "Use only the 27 watt adapter. Try another socket, wait a minute and a half (90 seconds)."),
    ("no-lights", "Still dark after 90 seconds in another socket? Then a new adapter is on its way by Kestrel courier."),
    ("outage-credit", "Yes: €2.15 for each day, if it was out for over 5 hours. Ask within 33 days."),
    ("outage-credit", "A whole day counts, it's more than 5 hours. You get €2.15, please ask within 33 days."),
    ("smart-devices", "Turn on the Cove band; 18 devices, 35 minutes, the name ends in -cove."),
    ("smart-devices", "The bulbs need the network ending in -cove. Turn on the Cove band first."),
    ("video-calls", "Call Lane! It keeps 22 % of your upload for calls, on 3 devices at most."),
    ("video-calls", "Please switch on Call Lane in the app. It reserves 22 percent of your upload."),
    ("wifi-password", "It's on the sticker, begins with Reef-, and a new one needs 13 characters or more."),
    ("wifi-password", "Look at the sticker: Reef-... You can change it under Wave Key."),
    ("app-closes", "Update to 8.3.1 first, then use Drain in its settings. Below Android 12, please take our website."),
    ("app-closes", "Which Android is it? Below Android 12 the app won't run, please use our website instead."),
    ("cancel-contract", "Under Cast Off, with 5 weeks' notice. Each remaining month costs €11.90."),
    ("cancel-contract", "You can cancel in the app (Cast Off). The notice is five weeks, that's 35 days."),
    ("late-fee", "I don't know that, so I'm passing this to a colleague."),
    ("refund", "I do not know that one. A colleague will write to you today."),
    ("moving", "You're welcome. Just write again if something else comes up."),
    ("moving", "Hello! Tell me what is wrong and I will look it up."),
    ("refund", "Please give me two minutes, I am looking it up."),
    ("refund", "Glad to hear that. Have a nice day!"),
)
OTHER_LANGUAGES = (
    ("Ich habe vergessen, die letzte Rechnung zu bezahlen. Was kostet mich das jetzt?",
     "Ab dem 16. Tag berechnen wir 6,35 €. Nach 30 Tagen sinkt Ihre Geschwindigkeit auf 2 Mbit/s."),
    ("Das Licht an der Box pulsiert violett, was bedeutet das denn bitte?",
     "Das ist ein Update. Bitte ziehen Sie den Stecker nicht, es dauert bis zu 19 Minuten."),
    ("Wann kommt meine Erstattung endlich auf meinem Konto an?",
     "Das dauert 12 Tage. Bei Beträgen unter 8 € kommt sie auf die nächste Rechnung."),
    ("Я забула заплатити за інтернет, чи буде якийсь штраф за це?",
     "Так, з 16 дня ми додаємо 6,35 €. Будь ласка, заплатіть до того."),
    ("Лампочка на коробці блимає фіолетовим, що мені робити?",
     "Триває оновлення, це до 19 хвилин. Будь ласка, не вимикайте коробку."),
    ("Коли прийде повернення коштів на мій рахунок?",
     "Це займає 12 робочих днів. Суми до 8 € підуть у наступний рахунок."),
    ("J'ai oublié de payer ma dernière facture, y a-t-il des frais pour cela ?",
     "Oui, à partir du 16e jour, 6,35 €. Merci de payer avant."),
    ("Le voyant de ma box clignote en violet, que dois-je faire ?",
     "C'est une mise à jour, cela dure 19 minutes. Ne débranchez pas la box."),
    ("Olvidé pagar la última factura, ¿hay algún recargo por eso?",
     "Sí, desde el día 16 cobramos 6,35 €. Por favor, pague antes."),
    ("La luz de la caja parpadea en violeta, ¿qué significa?",
     "Es una actualización y dura 19 minutos. Por favor, no desenchufe la caja."),
    ("здрастуйте памагіть нада знати коли прийде повернення", "Перевіряю. Це займає 12 робочих днів."),
    ("Почему списали деньги? Я же скасувала підписку", "Зараз перевірю це для вас."),
    ("パスワードはどこにありますか。教えてください。", "ステッカーをご確認ください。"),
    ("我的密码在哪里可以找到？", "请看盒子上的贴纸。"),
)  # fmt: skip
WITH_TOOLS = (
    ("", {"day": "monday"}),
    ("", {"day": "friday",
    "hour": 9}),
    ("I book that for you.", {"day": "friday"}),
    ("One moment, please.", {"day": "monday",
    "hour": 15}),
)  # fmt: skip


def good_answers(handbook: Handbook) -> list[Planted]:
    """Return 200 answers that may be learnt."""
    found = [
        Planted(QUESTIONS[article], opening.format(handbook.by_id[article].passages[0].text), topic=article, cites=article)
        for article in QUESTIONS
        for opening in _OPENINGS
    ]
    found += [Planted(QUESTIONS[article], text, topic=article) for article, text in HAND_WRITTEN]
    found += [Planted(question, text, topic="abroad") for question, text in OTHER_LANGUAGES]
    found += [
        Planted(
            "Please book a visit for me",
            text,
            topic="visits",
            tools_json=TOOLS,
            extra_json=tool_call(arguments=json.dumps(given)),
        )
        for text, given in WITH_TOOLS
    ]
    return found + [
        Planted("What does your sticker say?", f"It says that the box is number {n}.", topic="odd") for n in ("one", "two")
    ]


def defects(handbook: Handbook) -> Iterator[Planted]:
    """Yield 20 answers for each kind of defect."""
    articles = list(QUESTIONS)
    for place in range(20):
        article = articles[place]
        question, said = QUESTIONS[article], handbook.by_id[article].passages[0].text
        cut = (said[: len(said) // 2], "length") if place % 2 else (f"{said.split('.')[0]} and then press the", "stop")
        secret = f"{('EMAIL', 'PHONE', 'IBAN', 'CARD')[place % 4]}_{place % 3 + 1}"
        endless = " ".join(f"Then there is case {word} of this matter." for word in _words(200))
        for reason, text, finish in (
            ("truncated", *cut),
            ("empty", _EMPTY[place % len(_EMPTY)], "stop"),
            ("refusal", REFUSALS[place], "stop"),
            ("wrong_language", _FOREIGN[place % len(_FOREIGN)], "stop"),
            ("control_tokens", _LEAKS[place % len(_LEAKS)].format(said), "stop"),
            ("system_prompt_leaked", _PROMPT_LEAKS[place % len(_PROMPT_LEAKS)], "stop"),
            ("personal_data", _PERSONAL[place % len(_PERSONAL)].format(place + 10), "stop"),
            ("placeholder_not_in_question", f"{said} We write to <{secret}>.", "stop"),
            ("too_long", f"{said} {endless}", "stop"),
            ("too_short", _SHORT[place % len(_SHORT)], "stop"),
            ("unsupported_by_handbook", f"{said} {_UNSUPPORTED[place % len(_UNSUPPORTED)]}", "stop"),
        ):
            yield Planted(question, text, reason, topic=article, cites=article, finish_reason=finish)
        subject, text = _CONTRADICTIONS[place]
        yield Planted(question, text, "contradicts_handbook", topic=subject, cites=subject)
        yield Planted(
            "Please book a visit", "", "tool_call_invalid", topic="visits", tools_json=TOOLS if place % 5 else "",
            extra_json=_BAD_CALLS[place % len(_BAD_CALLS)],
        )  # fmt: skip
        other = articles[(place + 7) % len(articles)]
        copied = _OPENINGS[place % 3].format(handbook.by_id[other].passages[0].text)
        yield Planted(question, copied, "near_copy_of_other_topic", topic=article)


def tool_call(name: str = "book_visit", arguments: str = '{"day": "monday"}') -> str:
    return json.dumps(
        {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}]}
    )


def _words(count: int) -> list[str]:
    return [f"{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(count)]


_EMPTY = ("", " ", "...", "?!", "\n\n", "🙂", "-", "—", "()", "!")
_SHORT = ("Yes.", "No.", "Okay.", "Maybe.", "Sure!", "Done.", "Hi.", "Thanks.", "Later.", "Coral.")
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "As an AI language model, I cannot answer that.",
    "I'm sorry, but as an AI language model I cannot help with that.",
    "I am unable to provide that information.",
    "Sorry, I'm not able to help you with this. Please contact customer support.",
    "Unfortunately I can't assist with that topic. Is there anything else I can help you with?",
    "I can’t discuss that.",
    "I'm afraid I won't be able to help with that request.",
    "I must decline to answer this question.",
    "That is outside of my scope. Please consult a professional.",
    "This goes against my guidelines, so I cannot respond.",
    "We are not able to share such information. Thank you for your understanding.",
    "I apologize, but I cannot provide specific advice on this matter.",
    "I'm just an AI, so I have no way to do this.",
    "Es tut mir leid, dabei kann ich Ihnen leider nicht helfen.",
    "Вибачте, я не можу допомогти з цим питанням.",
    "Désolé, je ne peux pas vous aider avec cette demande.",
    "Lo siento, no puedo ayudarle con esa solicitud.",
    "I'd rather not answer that, sorry.",
    "Ich kann Ihnen damit leider nicht weiterhelfen.",
    "Leider kann ich diese Frage nicht beantworten. Bitte wenden Sie sich an den Kundenservice.",
    "На жаль, я не в змозі відповісти на це.",
    "Як штучний інтелект, я не маю права надати таку відповідь.",
    "Je suis désolé, je ne suis pas en mesure de répondre à cette question.",
    "En tant qu'IA, je dois refuser.",
    "Lamento no poder: como modelo de lenguaje no puedo responder a eso.",
    "I have to refuse this.",
    "I will not be able to assist you with that, I apologize for the inconvenience.",
    "I'm not allowed to help with this kind of question.",
    "I do not feel able to say. I'm a language model.",
    "I can not process that request.",
    "My apologies, I'm unable to discuss this. Please reach out to the appropriate team.",
    "We cannot give you any information on that.",
    "I can't talk about that, sorry about that.",
    "Sorry, this is not something I can do.",
    "I refuse to answer.",
    "As a virtual assistant I am not able to offer help here.",
    "I am not in a position to provide guidance on this.",
    "I cannot comply with this request. Let me know if you have other questions!",
)
NO_REFUSALS = (
    "I can't see your account, but you can look under Bills in the app yourself.",
    "You can't change it by phone; open the app and choose Pay Tide instead.",
    "I don't know that, so I'm passing this to a colleague.",
    "I do not know that yet. A colleague will look into it today.",
    "We can't send a technician on Sundays, the first visit is on Monday morning.",
    "I'm sorry about that! Please restart the box and wait until the lamp is lit.",
    "You are not able to join because the band is off: turn it on in the app.",
    "I cannot change the date myself, but in the app under Bills you can pick another day for the debit.",
    "Unfortunately the offer has ended. The normal price is on your contract.",
    "We don't have network there yet, so you can leave without any penalty.",
    "I'm not able to open attachments here. Please type the error that the page shows you.",
    "Your code can't be used twice; ask for a new one on the sign-in page.",
    "It is not possible to pause twice a year, though you may cancel whenever you want.",
    "I can't help laughing, that happened to me too! Push the plug in until it clicks.",
    "No, the adapter of another box won't do. Please use the one that came with yours.",
    "I won't charge you for that. The fee has been taken off your bill.",
    "Das geht leider nicht per Telefon, aber in der App unter Rechnungen können Sie es ändern.",
    "Ich kann Ihr Konto nicht sehen, bitte schauen Sie in der App unter Rechnungen nach.",
    "Я не бачу вашого рахунку, але в застосунку у розділі рахунків є вся історія.",
    "Je ne vois pas votre compte, mais dans l'application vous trouverez la facture détaillée.",
)
_FOREIGN = (
    "Bitte öffnen Sie die App und wählen Sie dort die Einstellungen, dann warten Sie bitte, bis das Licht wieder leuchtet.",
    "Будь ласка, відкрийте застосунок і зачекайте, доки лампа знову засвітиться.",
    "Veuillez ouvrir l'application et attendre que le voyant de la box soit de nouveau allumé.",
    "Por favor, abra la aplicación y espere hasta que la luz de la caja vuelva a encenderse.",
    "Пожалуйста, откройте приложение и подождите, пока лампа снова загорится.",
    "请打开应用程序并等待指示灯再次亮起。",
    "Proszę otworzyć aplikację i poczekać, aż lampka na urządzeniu znowu się zaświeci.",
    "يرجى فتح التطبيق والانتظار حتى يضيء المصباح مرة أخرى",
    "Open de app en wacht tot het lampje van de box weer brandt, dat kan even duren voor u.",
    "Abra o aplicativo e espere até que a luz da caixa volte a acender, isso pode demorar um pouco.",
)
_LEAKS = (
    "{}<|im_end|>",
    "<|assistant|>\n{}",
    "Assistant: {}",
    "{}\nUser: thanks\nAssistant: You're welcome.",
    "<think>they are angry</think>{}",
    "[INST] {} [/INST]", "{}<|eot_id|>", "### Response:\n{}", "{}</s>", '{{"role": "assistant", "content": "{}"}}',
)  # fmt: skip
_PROMPT_LEAKS = (
    "You are the support assistant of Tidewell, a home-internet provider.",
    "My instructions say: never promise a refund that the handbook does not name.",
    "I was told to keep internal codes to myself and answer in the language of the customer.",
    "Never promise a refund that the handbook does not name. That is the rule.",
    "As asked: Keep internal codes to yourself and answer in the language of the customer.",
)
_PERSONAL = (
    "Your colleague can be reached at maria.schmidt{}@example.org for that.",
    "Please call +49 30 9018 20{} and ask for it.",
    "We sent it to DE89 3704 0044 0532 0130 00, as for customer {}.",
    "Mr Brown had this as well, his order is on its way since day {}.",
    "The card 4111 1111 1111 1111 was charged, number {}.",
)  # fmt: skip
_UNSUPPORTED = (
    "It costs €99.99 then.",
    "This takes 77 days in all.",
    "Please run the test LT-99.",
    "See https://tidewell.example/help/17 for more.",
    "We also give you 500 GB for it.", "The number for that is 5551.", "You get 66 % off.", "Use form Z-17 for this.",
    "Your speed will be 750 Mbit/s.", "That was so in 1998 too.",
)  # fmt: skip
_CONTRADICTIONS = (
    ("late-fee", "From the 16th day of delay we add a late fee of €9.80."),
    ("late-fee", "If the bill is still unpaid after 45 days, your speed falls to 2 Mbit/s."),
    ("violet-pulse", "The Harbour 3 is installing an update, which takes up to 19 hours."),
    ("violet-pulse", "If it still pulses after 40 minutes, press the reset pin for 30 seconds."),
    ("coral-light", "Push the slate-grey plug in until it clicks twice, then wait 16 minutes."),
    ("cancel-contract", "You can do so in the app under Cast Off, with a notice of 2 weeks."),
    ("cancel-contract", "If you leave before the end of your contract, each remaining month costs €19.90."),
    ("dead-room", "A Buoy costs €5.70 a month."),
    ("debit-day", "Make the change at least 3 days before the next debit."),
    ("evening-slow", "The change needs 80 minutes to settle."),
    ("first-bill", "It includes a one-off activation fee of €39.60 and the days until the 21st."),
    ("login-code", "Each code is valid for 11 hours."),
    ("login-code", "After too many tries, your account is locked for 2 days."),
    ("missed-visit", "Report the missed visit within 30 days and you get €31 compensation."),
    ("moving-no-cover", "No network at the new address: you cannot leave without penalty."),
    ("moving", "Moving the line costs €71.25."),
    ("outage-credit", "Every outage of over 50 hours counts, and we give you a credit of €2.15 for each day."),
    ("video-calls", "It reserves 44 percent of your upload for calls, so picture and voice stay steady."),
    ("smart-devices", "It stays open for 35 hours, and up to 18 such devices can use it."),
    ("return-kit", "If it does not come back in that time, €48 is charged."),
)
_BAD_CALLS = (
    tool_call(arguments='{"day": "sunday"}'), tool_call(arguments='{"day": "monday"'), tool_call(name="cancel_contract"),
    tool_call(arguments='{"hour": 9}'), tool_call(arguments='{"day": "monday", "hour": "nine"}'), tool_call(arguments="[]"),
    tool_call(arguments='{"day": "monday", "customer": 1}'), '{"tool_calls": "book_visit"}', '{"tool_calls": [{}]}', "no json",
)  # fmt: skip
