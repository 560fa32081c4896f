"""Ordinary sentences of support conversations without personal data, in English and Ukrainian, full of numbers of other sorts.

In: a seed and how many. Out: the same sentences every time: order and serial numbers, versions, dates, prices, times, error codes,
MAC addresses, UUIDs, checksums and plain talk.
"""

import random
import string
import uuid
from collections.abc import Iterator

_SENTENCES = (
    "Where is order {order}? It was due on {date}.",
    "Order no. {order}, invoice {invoice}, total {price}.",
    "Ticket #{ticket} is still open.",
    "Since version {version} the app closes at once.",
    "I updated from {version} to {version} and now nothing works.",
    "firmware: {version}",
    "The box shows error {error} after {time}.",
    "Error code {error}, model {model}, serial {serial}.",
    "I paid {price} twice, on {date} and {date}.",
    "The courier was here at {time}, I waited until {time}.",
    "The MAC address is {mac}.",
    "Log: {date} {time}:12 link down ({hex})",
    "Request id {uuid} failed.",
    "git says commit {sha} broke the build",
    "sha256 of the download: {sha256}",
    "Tracking number {tracking}, parcel of {weight} kg",
    "Opening hours are Mon-Fri {time}-{time}, Sat 10-14.",
    "My meter reading is {reading} as of {date}.",
    "Is the {model} better than the {model}?",
    "We are {small} people and need {small} GB each.",
    "The speed test gives {small}.{small} Mbit/s down and {small} up.",
    "Reference {reference}, please.",
    "Room {small}, floor {digit}, row {digit}: which router do I need?",
    "The library libfoo-{version}.tar.gz does not compile.",
    "I use Chrome {chrome} on Windows 11.",
    "See section {digit}.{digit}.{digit}.{digit} of the contract.",
    "It costs {price} a month for {small} months.",
    "Part number {part}, size {small}x{small}x{small} mm",
    "ISBN 978-3-16-148410-0, second edition of {year}",
    "Call volume was high, I waited {small} minutes.",
    "Add {small}% and you get {price}.",
    "My password is not accepted.",
    "The password is too short, it says at least 8-16 characters.",
    "I forgot my password and the token expired.",
    "Your e-mail never arrived.",
    "Which card do you accept, Visa or Mastercard?",
    "Please block my card, it was stolen.",
    "The key is stuck in the lock.",
    "Look at example.com/help, page {digit}.",
    "std::vector and foo::bar are not the problem.",
    "The ratio is {digit}:{small}, was {digit}:{small} before.",
    "Coordinates {digit}{digit}.{reading}, 0.{reading}",
    "The case was opened on {date} and closed at {time}.",
    "{order} or {order}? I do not know which order it is.",
    "Line 1: ok, line 2: ok, line 3: failed with {error}",
    "The contract runs {year}-{year}, {small} months.",
    "Item {part} is out of stock since {date}.",
    "I have 3 lamps, 12 cables and 250 screws.",
    "Can you call me a taxi?",
    "Hello, how are you today?",
    "The light glows coral and blinks twice.",
    "pi is 3.14159265358979 as far as I know",
    "Timestamp {stamp}, sequence {ticket}",
    "We moved from flat {small} to flat {small}.",
    "Policy 12-345 covers it.",
    "Where do I find my customer number?",
    "basic troubleshooting did not help",
    "It was the bearer of bad news.",
    "api key not accepted, why?",
    "Замовлення {order} ще не приїхало, чекаю з {date}.",
    "Рахунок {invoice} на суму {price_uk}.",
    "Після оновлення до версії {version} не працює.",
    "Прошивка {version}, модель {model}, помилка {error}.",
    "Кур'єр був о {time}, я чекав до {time}.",
    "Накладна {tracking}, вага {weight} кг.",
    "Графік: пн-пт {time}-{time}, сб 10-14.",
    "Показники лічильника {reading} станом на {date}.",
    "Серійний номер {serial}, MAC {mac}.",
    "Я заплатила {price_uk} двічі, {date} і {date}.",
    "Пароль не підходить, що робити?",
    "Забув пароль, а токен застарів.",
    "Ваш лист не прийшов.",
    "Які картки ви приймаєте?",
    "Заявка №{ticket} досі відкрита.",
    "Швидкість {small} Мбіт/с замість {small}.",
    "Тариф коштує {price_uk} на місяць.",
    "Договір від {date}, пункт {digit}.{digit}.{digit}.{digit}.",
    "Нас {small} осіб, потрібно {small} ГБ.",
    "Лампочка блимає помаранчевим.",
    "Дякую, все працює!",
    "Код помилки {error}, запит {uuid}.",
    "Дзвонив тричі, чекав {small} хвилин.",
    "Посилка {tracking} застрягла.",
    "Артикул {part}, розмір {small}x{small} мм",
)


def ordinary_sentences(seed: int, count: int) -> Iterator[str]:
    """Yield sentences, each template in turn with other numbers."""
    draw = random.Random(seed)
    for place in range(count):
        text = _SENTENCES[place % len(_SENTENCES)]
        while "{" in text:
            name = text[text.index("{") + 1 : text.index("}")]
            text = text.replace("{" + name + "}", _value(name, draw), 1)
        yield text


def _value(name: str, draw: random.Random) -> str:
    def digits(count: int) -> str:
        return "".join(draw.choice(string.digits) for _ in range(count))

    def letters(count: int) -> str:
        return "".join(draw.choice(string.ascii_uppercase) for _ in range(count))

    def hexadecimal(count: int) -> str:
        return "".join(draw.choice("0123456789abcdef") for _ in range(count))

    day, month, year = f"{draw.randrange(1, 29):02d}", f"{draw.randrange(1, 13):02d}", str(draw.randrange(2019, 2027))
    amount = f"{draw.randrange(1, 3000)}"
    values = {
        "order": [digits(8), digits(10), f"TW-{digits(6)}", digits(6), f"{digits(3)}-{digits(7)}-{digits(7)}"],
        "invoice": [f"INV-{year}-{digits(5)}", digits(7), f"RE{digits(8)}"],
        "ticket": [digits(5), digits(7)],
        "date": [f"{day}.{month}.{year}", f"{year}-{month}-{day}", f"{day}/{month}/{year}", f"{day} May {year}"],
        "time": [f"{draw.randrange(24):02d}:{draw.randrange(60):02d}"],
        "year": [year],
        "digit": [digits(1)],
        "small": [str(draw.randrange(2, 999))],
        "price": [f"£{amount}.99", f"€1,{digits(3)}.00", f"${amount}", f"{amount},50 €"],
        "price_uk": [f"{amount} грн", f"1 {digits(3)},50 грн"],
        "version": [
            f"{draw.randrange(20)}.{draw.randrange(30)}.{draw.randrange(99)}.{draw.randrange(9)}",
            f"{digits(1)}.{draw.randrange(20)}.{digits(1)}",
        ],
        "chrome": [f"{draw.randrange(90, 140)}.0.{draw.randrange(10, 255)}.{draw.randrange(10, 200)}"],
        "error": [f"E-{digits(4)}", f"0x{hexadecimal(8)}", digits(3)],
        "model": [f"{letters(2)}-{digits(4)}", f"Box {digits(2)}{letters(1)}"],
        "serial": [f"{letters(2)}{digits(9)}", f"SN{digits(4)}-{letters(4)}-{digits(4)}"],
        "mac": [":".join(hexadecimal(2) for _ in range(6)).upper(), "-".join(hexadecimal(2) for _ in range(6))],
        "hex": [f"0x{hexadecimal(6)}"],
        "uuid": [str(uuid.UUID(int=draw.getrandbits(128), version=4))],
        "sha": [hexadecimal(40)],
        "sha256": [hexadecimal(64)],
        "tracking": [f"{letters(2)}{digits(9)}{letters(2)}", f"1Z{letters(3)}{digits(11)}", digits(12)],
        "weight": [f"{digits(1)}.{digits(2)}"],
        "reading": [digits(5), digits(6)],
        "reference": [f"{letters(3)}{digits(6)}", f"{digits(4)}/{digits(4)}"],
        "part": [f"{digits(4)}-{letters(3)}-{digits(2)}"],
        "stamp": [f"17{digits(8)}", f"{year}{month}{day}T{digits(6)}Z"],
    }
    return draw.choice(values[name])
