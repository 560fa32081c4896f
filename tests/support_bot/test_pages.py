"""The two pages in a real browser, with a scripted student behind them."""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chat_world import PASSWORD, ChatWorld, start_pages
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from test_canary import assert_rolled_back

from conversations import decisions, releases, reviews, rollouts, runs, schedules, tags, turns, votes
from conversations.decisions import AnswerAuthor, Decision, Verdict
from conversations.messages import Author, Role, Split, TurnStatus
from conversations.rollouts import Rollout, RolloutKind, RolloutState, Rules
from conversations.schedules import ScheduleDecision
from conversations.votes import Choice

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAYLOADS = (
    "<img src=http://evil.example/1.png onerror=alert(1)> ![x](http://evil.example/2.png) <style>*{display:none}</style> "
    "<form action=http://evil.example><input type=password></form> <iframe src=http://evil.example></iframe> "
    "<svg onload=alert(1)> [click](javascript:alert(1)) ![a][b]\n\n[b]: http://evil.example/3.png\n\n"
    "${alert(1)} {{value}} <video src=http://evil.example/v> <div style='position:fixed;inset:0'>over</div> "
    "![x](\nhttp://evil.example/4.png) <a href='http://evil.example'>a</a> &lt;b&gt; the end"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not there; `apt-get install chromium` brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    # A busy machine is slow, not wrong.
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatWorld]:
    ports = f"chat_port = {free_port()}\nconsole_port = {free_port()}\n"
    made = ChatWorld(tmp_path_factory.mktemp("pages"), serve=ports)
    process = start_pages(made)
    yield made
    process.terminate()
    assert process.wait(20) == 0
    made.close()


@pytest.fixture
def visitor(browser: Browser, world: ChatWorld) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(20_000)
    yield context
    context.close()
    world.say_up()
    world.student.__dict__.update(
        seconds_per_piece=0.0, seconds_before_first=0.0, dies_after_pieces=None, answers={}, exact_pieces=None,
        answer="Please restart the router and wait two minutes.",
    )  # fmt: skip


def open_chat(visitor: BrowserContext, world: ChatWorld) -> Page:
    page = visitor.new_page()
    page.goto(f"http://127.0.0.1:{world.settings.serve.chat_port}/")
    expect(page.locator("#message textarea")).to_be_visible(timeout=20_000)
    # The page's first event has been to the server and back: from here on the page listens.
    page.locator("#notice p").wait_for(state="attached")
    return page


def say(page: Page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.keyboard.press("Enter")


def bubbles(page: Page, who: str = "bot"):
    return page.get_by_test_id(who)


def newest_thread(world: ChatWorld):
    row = world.record.one("SELECT conversation_id FROM conversations ORDER BY created_at_utc DESC LIMIT 1")
    return turns.thread(world.record, row["conversation_id"])


def test_question_is_answered_word_by_word_and_the_box_is_empty_again(visitor, world):
    world.student.seconds_per_piece = 0.3
    page = open_chat(visitor, world)
    assert "AI assistant" in page.inner_text("#disclosure")
    say(page, "Why is the light *red* & <b>on</b>?")
    expect(bubbles(page)).to_have_text(re.compile("Please restart"))
    assert len(bubbles(page).inner_text()) < len(world.student.answer)
    expect(page.locator("#stop")).to_be_visible()
    expect(bubbles(page)).to_have_text(world.student.answer)
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#message textarea")).to_have_value("")
    expect(bubbles(page, "user")).to_have_text("Why is the light *red* & <b>on</b>?")


def test_reload_in_mid_answer_shows_the_conversation_and_its_answer_to_the_end(visitor, world):
    world.student.seconds_per_piece = 0.5
    page = open_chat(visitor, world)
    say(page, "Why is the light red?")
    expect(bubbles(page)).to_have_text(re.compile("Please restart"))
    page.reload()
    expect(bubbles(page, "user")).to_have_text("Why is the light red?")
    expect(bubbles(page)).to_have_text(world.student.answer)
    expect(page.locator("#send")).to_be_visible()
    expect(bubbles(page)).to_have_count(1)
    assert newest_thread(world)[-1].status is TurnStatus.COMPLETE


def test_stop_keeps_the_part_and_gives_the_box_back(visitor, world):
    world.student.seconds_per_piece = 0.5
    page = open_chat(visitor, world)
    say(page, "Why is the light red?")
    expect(bubbles(page)).to_have_text(re.compile("Please restart"))
    page.locator("#stop").click()
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#message textarea")).to_be_focused()
    stopped = newest_thread(world)[-1]
    assert stopped.status is TurnStatus.STOPPED and stopped.content.startswith("Please")
    expect(bubbles(page)).to_have_text(stopped.content)


def test_failure_is_one_sentence_beside_the_chat_and_retry_answers(visitor, world):
    world.student.dies_after_pieces = 0
    page = open_chat(visitor, world)
    say(page, "Why is the light red?")
    expect(page.locator("#notice")).to_have_text("I couldn't answer just now. Please try again.")
    expect(bubbles(page)).to_have_count(0)
    assert newest_thread(world)[-1].status is TurnStatus.FAILED
    page.reload()
    expect(page.locator("#notice")).to_have_text("I couldn't answer just now. Please try again.")
    world.student.dies_after_pieces = None
    page.locator("#retry").click()
    expect(bubbles(page)).to_have_text(world.student.answer)
    expect(page.locator("#retry")).to_be_hidden()
    expect(page.locator("#notice")).to_have_text("")


def test_thumb_is_kept_changed_and_restored_after_a_reload(visitor, world):
    page = open_chat(visitor, world)
    say(page, "Why is the light red?")
    expect(bubbles(page)).to_have_text(world.student.answer)
    expect(page.locator("#send")).to_be_visible()
    reply = newest_thread(world)[-1].turn_id
    page.get_by_role("button", name="Like", exact=True).click()
    page.wait_for_timeout(500)
    assert turns.turn(world.record, reply).vote == "up"
    page.reload()
    expect(page.get_by_role("button", name=re.compile("liked", re.IGNORECASE))).to_have_count(1)
    page.get_by_role("button", name="Dislike", exact=True).click()
    page.wait_for_timeout(500)
    assert turns.turn(world.record, reply).vote == "down"
    assert len(world.record.query("SELECT * FROM feedback WHERE turn_id = ?", [reply])) == 1


def test_two_browsers_cannot_read_each_other_s_conversation(visitor, world, browser):
    page = open_chat(visitor, world)
    say(page, "My secret is 4711")
    expect(bubbles(page)).to_have_text(world.student.answer)
    conversation_id = page.locator("#conversation textarea").input_value()
    assert turns.conversation(world.record, conversation_id)
    stranger = browser.new_context()
    theirs = open_chat(stranger, world)
    expect(bubbles(theirs, "user")).to_have_count(0)
    # The stranger names the other conversation; the cookie decides, so a new one begins.
    theirs.evaluate(
        """(id) => { const box = document.querySelector('#conversation textarea');
        Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, id);
        box.dispatchEvent(new Event('input', {bubbles: true})); }""",
        conversation_id,
    )
    say(theirs, "What is the secret?")
    expect(bubbles(theirs, "user")).to_have_text("What is the secret?")
    expect(bubbles(theirs)).to_have_text(world.student.answer)
    assert len(turns.all_turns(world.record, conversation_id)) == 2
    assert not any("4711" in str(world.student.requests[-1]) for _ in (0,))
    stranger.close()


def test_new_conversation_leaves_the_old_one_and_consent_is_noted(visitor, world):
    page = open_chat(visitor, world)
    say(page, "First")
    expect(bubbles(page)).to_have_text(world.student.answer)
    first = page.locator("#conversation textarea").input_value()
    page.locator("#new").click()
    expect(bubbles(page)).to_have_count(0)
    page.locator("#consent input").check()
    say(page, "Second")
    expect(bubbles(page)).to_have_text(world.student.answer)
    second = page.locator("#conversation textarea").input_value()
    assert first != second
    assert turns.conversation(world.record, first).consent == "no"
    assert turns.conversation(world.record, second).consent == "yes"


def test_page_says_so_while_no_student_is_there_and_keeps_working_afterwards(visitor, world):
    world.say_down()
    page = open_chat(visitor, world)
    expect(page.locator("#banner")).to_contain_text("unavailable")
    say(page, "Anybody there?")
    expect(page.locator("#notice")).to_have_text("I couldn't answer just now. Please try again.")
    world.say_up()
    expect(page.locator("#banner")).to_be_hidden()
    page.locator("#retry").click()
    expect(bubbles(page)).to_have_text(world.student.answer)


def test_nobody_s_words_bring_in_pictures_forms_scripts_or_overlays(visitor, world):
    asked_for: list[str] = []
    visitor.on("request", lambda request: asked_for.append(request.url))
    world.student.exact_pieces = [PAYLOADS]
    page = open_chat(visitor, world)
    page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    say(page, PAYLOADS.replace("\n", " "))
    expect(bubbles(page)).to_have_text(re.compile("the end"))
    page.wait_for_timeout(500)
    for locator in (bubbles(page), bubbles(page, "user")):
        assert locator.locator("img, form, iframe, style, svg, video, input, script, [style*=fixed]").count() == 0
        hrefs = [link.get_attribute("href") for link in locator.locator("a").all()]
        assert all(href.startswith(("http://", "https://", "mailto:")) for href in hrefs)
    assert not [url for url in asked_for if "127.0.0.1" not in url and not url.startswith("data:")]

    console = log_in(visitor, world)
    console.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    choose(console, "#found", "", until="#reader .turn")
    expect(console.locator("#reader")).to_contain_text("${alert(1)} {{value}}")
    assert console.locator("#reader").locator("img, form, iframe, style, svg, video, input, script").count() == 0
    assert not [url for url in asked_for if "127.0.0.1" not in url and not url.startswith("data:")]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_needs_no_sideways_scrolling(visitor, world, width):
    world.student.exact_pieces = [
        "https://example.com/" + "x" * 300,
        "\n\n|a|b|c|d|e|f|\n|-|-|-|-|-|-|\n|" + "wide cell|" * 6,
    ]
    page = open_chat(visitor, world)
    page.set_viewport_size({"width": width, "height": 800})
    say(page, "y" * 300)
    expect(bubbles(page)).to_have_text(re.compile("wide cell"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for button in page.locator("#chat .message-buttons button").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24


def log_in(visitor: BrowserContext, world: ChatWorld) -> Page:
    page = visitor.new_page()
    page.goto(f"http://127.0.0.1:{world.settings.serve.console_port}/")
    assert page.url.endswith("/login")
    page.locator("[name=operator]").fill("operator")
    page.locator("[name=password]").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("tab", name="Conversations")).to_be_visible(timeout=20_000)
    return page


def choose(page: Page, inside: str, text: str, *, until: str) -> None:
    """Click a choice of a list until it shows: a click on a list that is just being drawn is lost."""
    deadline = time.monotonic() + 20
    while not page.locator(until).count():
        assert time.monotonic() < deadline, f"{inside} takes no click"
        page.locator(f"{inside} button", has_text=text).first.click()
        with suppress(PlaywrightTimeout):
            page.locator(until).first.wait_for(timeout=2_000)


def test_console_lets_nobody_in_without_the_password(visitor, world):
    page = visitor.new_page()
    root = f"http://127.0.0.1:{world.settings.serve.console_port}"
    page.goto(root)
    assert page.url == f"{root}/login"
    page.locator("[name=operator]").fill("operator")
    page.locator("[name=password]").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("That name and password do not fit together.")
    for path in (
        "/config",
        "/gradio_api/info",
        "/gradio_api/queue/join",
        "/gradio_api/heartbeat/x",
        "/theme.css",
        "/cancel",
    ):
        assert visitor.request.get(root + path).status == 401
        assert visitor.request.post(root + path, data={}).status == 401


def test_runs_tab_asks_for_one_run_however_often_it_is_clicked(visitor, world):
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Runs").click()
    for _ in range(3):
        page.locator("#ask-run").click()
        page.wait_for_timeout(300)
    # Clicks that come while the first is on its way are one with it; a later one finds the request waiting.
    expect(page.locator("#asked")).to_contain_text("asked for")
    deadline = time.monotonic() + 20
    while "waiting already" not in page.locator("#asked").inner_text() and time.monotonic() < deadline:
        page.locator("#ask-run").click()
        page.wait_for_timeout(500)
    expect(page.locator("#asked")).to_contain_text("waiting already")
    assert [request.requested_by for request in runs.requests(world.record)] == ["operator"]
    runs.begin_run(world.record, run_id="run-1", path="run", settings_digest="x")
    runs.show_progress(world.record, "run-1", stage="train", progress=0.42)
    expect(page.locator("#runs")).to_contain_text("42 %")


def test_conversations_are_found_by_words_and_filters_together(visitor, world):
    record = world.record
    for name, said in (
        ("uma", "Після оновлення роутер блимає фіолетовим"),
        ("vic", "my router blinks violet since the update"),
    ):
        talk = turns.create_conversation(record, customer_id=name, channel="chat").conversation_id
        turns.append_message(record, talk, Role.USER, Author.CUSTOMER, said)
        tags.tag(record, talk, ["vip"], tagged_by="test")
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Conversations").click()
    found = page.locator("#found")
    page.get_by_label("Tag").click()
    page.get_by_role("option", name="vip").click()
    expect(found.locator("button")).to_have_count(2)
    page.get_by_label("Language").click()
    page.get_by_role("option", name="uk").click()
    expect(found.locator("button")).to_have_count(1)
    expect(found).to_contain_text("роутер")
    page.locator("#find").get_by_role("textbox").fill("violet")
    page.locator("#find").get_by_role("textbox").press("Enter")
    expect(found).to_contain_text("No conversation fits")
    page.locator("#since").get_by_role("textbox").fill("soon")
    page.locator("#since").get_by_role("textbox").press("Enter")
    expect(found).to_contain_text("'soon' is no day; write it as 2026-03-01")


def test_compare_shows_logged_teacher_and_student_answers_side_by_side(visitor, world):
    record = world.record
    asked = turns.create_conversation(record, customer_id="cat", channel="import")
    question = turns.append_message(record, asked.conversation_id, Role.USER, Author.CUSTOMER, "It blinks coral")
    logged = turns.append_message(record, asked.conversation_id, Role.ASSISTANT, Author.IMPORTED, "Turn it off and on")
    if not runs.runs(record):
        runs.begin_run(record, run_id="run-1", path="run", settings_digest="x")
    decision = Decision(
        "decision-1",
        asked.conversation_id,
        question.turn_id,
        logged.turn_id,
        "c1",
        Split.TEST,
        "lights",
        "h",
        "run-1",
        "thumb",
    )
    decisions.put_decisions(record, [decision])
    taught = decisions.add_answer(
        record, "decision-1", author=AnswerAuthor.TEACHER, author_name="big", content="Wait 12 minutes", passages=["coral#2"]
    )
    decisions.give_verdict(record, {taught.answer_id: (Verdict.ACCEPTED, "supported")})
    decisions.add_answer(
        record, "decision-1", author=AnswerAuthor.STUDENT, author_name=world.base, content="The light is a light"
    )
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Compare").click()
    choose(page, "#decisions", "It blinks coral", until="#side-by-side .answer")
    cards = page.locator("#side-by-side .answer")
    expect(cards).to_have_count(3)
    for card, words in zip(cards.all(), ["Turn it off and on", "Wait 12 minutes", "The light is a light"], strict=True):
        expect(card).to_contain_text(words)
    expect(cards.nth(1)).to_contain_text("accepted")
    expect(cards.nth(1)).to_contain_text("coral#2")
    lefts = [card.bounding_box()["x"] for card in cards.all()]
    assert lefts == sorted(set(lefts)), "on a desktop they stand side by side"


def test_an_operator_writes_a_better_answer_and_judges_the_one_that_was_given(visitor, world):
    record = world.record
    asked = turns.create_conversation(record, customer_id="dan", channel="import").conversation_id
    question = turns.append_message(
        record, asked, Role.USER, Author.CUSTOMER, "Write to dan@example.org when the beacon is mended"
    )
    if not runs.runs(record):
        runs.begin_run(record, run_id="run-1", path="run", settings_digest="x")
    decisions.put_decisions(
        record, [Decision("decision-2", asked, question.turn_id, None, "c2", Split.TRAIN, "lights", "h", "run-1", "thumb")]
    )
    taught = decisions.add_answer(
        record, "decision-2", author=AnswerAuthor.TEACHER, author_name="big", content="Nobody mends beacons"
    )
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#word")).to_be_hidden()
    choose(page, "#decisions", "when the beacon is mended", until="#side-by-side .answer")
    page.locator("#better-answer").get_by_role("textbox").fill("We write to dan@example.org <b>today</b>.")
    page.locator("#save-answer").click()
    expect(page.locator("#word-said")).to_contain_text("Saved as version 1 of your answer")
    expect(page.locator("#side-by-side")).to_contain_text("We write to <EMAIL_1> <b>today</b>.")
    page.locator("#reject").click()
    expect(page.locator("#word-said")).to_contain_text("Choose an answer above first")
    page.locator("#given").get_by_text("big: Nobody mends beacons").click()
    page.locator("#reject").click()
    expect(page.locator("#word-said")).to_contain_text("The answer is rejected")
    expect(page.locator("#side-by-side")).to_contain_text("rejected by operator")
    assert reviews.newest(record)[taught.answer_id].reviewed_by == "operator"
    written = [each.content for each in decisions.answers(record, "decision-2") if each.author is AnswerAuthor.OPERATOR]
    assert written == ["We write to <EMAIL_1> <b>today</b>."]


def test_roll_back_needs_a_reason_and_restores_the_release_before(visitor, world):
    world.new_release("tuned-1")
    releases.promote(world.record, "tuned-1", actor="test", reason="passed")
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Releases").click()
    page.locator("#rollback").get_by_text("Roll back").first.click()
    page.locator("#roll-back").click()
    expect(page.locator("#rolled-back")).to_contain_text("give a reason")
    page.locator("#reason").get_by_role("textbox").fill("customers complain")
    page.locator("#roll-back").click()
    expect(page.locator("#rolled-back")).to_contain_text(f"tuned-1 is rolled back; {world.base} is in service")
    newest = releases.events(world.record)[0]
    assert (newest.release_id, newest.event, newest.actor, newest.reason) == (
        world.base, "restored", "operator", "customers complain",
    )  # fmt: skip


def on_trial(world: ChatWorld, name: str, *, has_served: bool = False) -> Rollout:
    world.new_release(name)
    for each in (name, world.base) if has_served else ():
        releases.promote(world.record, each, actor="test", reason="test")
    return rollouts.start(
        world.record, RolloutKind.CANARY, name, share=1, rules=Rules(min_turns=3), actor="test", reason="try it",
        against_gate=True,
    )  # fmt: skip


def failed_answer(world: ChatWorld, release_id: str) -> None:
    talk = turns.create_conversation(world.record, customer_id="flo", channel="web").conversation_id
    asked = turns.append_message(world.record, talk, Role.USER, Author.CUSTOMER, "Hello?")
    reply = turns.begin_reply(
        world.record, talk, question_turn_id=asked.turn_id, release_id=release_id, prompt_version="1", decoding={}
    )
    turns.finish_reply(world.record, reply.turn_id, status=TurnStatus.FAILED, content="", failure_code="broke_off")


def test_a_canary_is_shown_beside_the_release_in_service_and_stopped_with_a_reason(visitor, world):
    canary = on_trial(world, "tuned-2")
    chat = open_chat(visitor, world)
    say(chat, "Why is the light red?")
    expect(bubbles(chat)).to_have_text(world.student.answer)
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Releases").click()
    shown = page.locator("#rollouts")
    expect(shown).to_contain_text("tuned-2 answers 100% of new conversations")
    expect(shown.locator("tbody tr").nth(0)).to_contain_text("canary")
    expect(shown.locator("tbody tr").nth(0)).to_contain_text("0 of 1")
    expect(shown.locator("tbody tr").nth(1)).to_contain_text(world.base)
    page.locator("#stop-canary").click()
    expect(page.locator("#canary-said")).to_contain_text("give a reason")
    assert rollouts.running(world.record, RolloutKind.CANARY) == canary
    page.locator("#canary-reason").get_by_role("textbox").fill("complaints")
    # The page is drawn anew every few seconds; what an operator types stays.
    page.wait_for_timeout(4_000)
    page.locator("#stop-canary").click()
    expect(page.locator("#canary-said")).to_contain_text("move to the release in service at their next turn")
    expect(page.locator("#stop-canary")).to_be_hidden()
    expect(shown).to_contain_text("No canary goes on")
    assert_rolled_back(world, canary, by="operator")
    say(chat, "And now?")
    expect(bubbles(chat)).to_have_count(2)
    expect(bubbles(chat).nth(1)).to_have_text(world.student.answer)
    assert [each.release_id for each in newest_thread(world) if each.role is Role.ASSISTANT] == ["tuned-2", world.base]


def test_the_roll_back_button_takes_back_the_canary_that_goes_on(visitor, world):
    canary = on_trial(world, "tuned-3")
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Releases").click()
    page.locator("#rollback").get_by_text("Roll back").first.click()
    page.locator("#reason").get_by_role("textbox").fill("complaints")
    page.locator("#roll-back").click()
    expect(page.locator("#rolled-back")).to_contain_text(f"tuned-3 is rolled back; {world.base} is in service")
    assert_rolled_back(world, canary, by="operator")


def test_a_canary_that_breaks_a_rule_goes_by_itself_and_the_open_page_says_so(visitor, world):
    canary = on_trial(world, "tuned-4")
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Releases").click()
    expect(page.locator("#rollouts")).to_contain_text("tuned-4 answers 100% of new conversations")
    for _ in range(3):
        failed_answer(world, "tuned-4")
    # Nobody touches the page: the chat process looks, and the page looks at the record.
    expect(page.locator("#rollouts")).to_contain_text("No canary goes on")
    expect(page.locator("#releases")).to_contain_text("the error rate is 100.0% (3 of 3 answers")
    assert rollouts.rollout(world.record, canary.rollout_id).state is RolloutState.ROLLED_BACK
    assert releases.in_service(world.record) == world.base


def test_promote_now_puts_the_canary_into_service(visitor, world):
    canary = on_trial(world, "tuned-5", has_served=True)
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Releases").click()
    page.locator("#canary-reason").get_by_role("textbox").fill("good enough")
    page.locator("#promote-canary").click()
    expect(page.locator("#canary-said")).to_contain_text("tuned-5 is in service")
    assert releases.in_service(world.record) == "tuned-5"
    assert rollouts.rollout(world.record, canary.rollout_id).state is RolloutState.PROMOTED
    releases.roll_back(world.record, to=world.base, actor="test", reason="the next test")


def test_promote_now_does_not_go_round_the_gate(visitor, world):
    canary = on_trial(world, "tuned-6")
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Releases").click()
    page.locator("#canary-reason").get_by_role("textbox").fill("good enough")
    page.locator("#promote-canary").click()
    expect(page.locator("#canary-said")).to_contain_text("the gate was never asked about 'tuned-6'")
    assert releases.in_service(world.record) == world.base
    assert rollouts.take_back(world.record, canary.rollout_id, actor="test", reason="the next test")


def test_runs_tab_tells_what_schedulers_decided_and_why(visitor, world):
    schedules.note_decision(
        world.record, scheduler="box-1", decision=ScheduleDecision.WAITS, reason="3 new conversations of <50>"
    )
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Runs").click()
    row = page.locator("#runs tr", has_text="box-1")
    expect(row).to_contain_text("waits")
    expect(row).to_contain_text("3 new conversations of <50>")


def test_a_blind_vote_tells_whose_the_answers_are_only_after_the_vote(visitor, world):
    record = world.record
    asked = turns.create_conversation(record, customer_id="eve", channel="import").conversation_id
    question = turns.append_message(record, asked, Role.USER, Author.CUSTOMER, "The mast hums at night")
    if not runs.runs(record):
        runs.begin_run(record, run_id="run-1", path="run", settings_digest="x")
    decisions.put_decisions(
        record, [Decision("decision-3", asked, question.turn_id, None, "c3", Split.TEST, "lights", "h", "run-1", "thumb")]
    )
    said = {"big-teacher": "Masts hum in the wind", "tuned-student": "Call the <b>store</b>"}
    for name, words in said.items():
        author = AnswerAuthor.TEACHER if name == "big-teacher" else AnswerAuthor.STUDENT
        decisions.add_answer(record, "decision-3", author=author, author_name=name, content=words)
    page = log_in(visitor, world)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#blind").get_by_text("Blind vote").first.click()
    page.locator("#blind-next").click()
    cards = page.locator("#blind-pair .answer")
    # Another test's decision may be drawn before this one.
    deadline = time.monotonic() + 30
    while "The mast hums" not in page.locator("#blind-pair").inner_text():
        assert time.monotonic() < deadline
        page.locator("#blind-next").click()
        page.wait_for_timeout(400)
    expect(cards).to_have_count(2)
    assert not any(name in page.content() for name in said), "no name is on the page, shown or hidden"
    for word in ("teacher", "student"):
        assert word not in " ".join(cards.all_inner_texts())
    left_words = cards.nth(0).inner_text()
    page.locator("#blind-left").click()
    expect(page.locator("#blind-said")).to_contain_text("Noted: A is better.")
    expect(page.locator("#blind-pair")).to_contain_text("big-teacher")
    expect(page.locator("#blind-pair")).to_contain_text("tuned-student")
    expect(cards.nth(0)).to_contain_text("better, you say")
    (vote,) = [each for each in votes.votes(record) if each.decision_id == "decision-3"]
    better = next(each for each in decisions.answers(record, "decision-3") if each.answer_id == vote.left_answer_id)
    assert (vote.choice, vote.voted_by) == (Choice.LEFT, "operator")
    assert better.content in left_words
    expect(page.locator("#blind-left")).to_be_hidden()
    page.locator("#blind-next").click()
    expect(page.locator("#blind-pair")).not_to_contain_text("The mast hums")
