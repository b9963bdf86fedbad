"""On the device, in the cloud, or split: latency, money and battery of each path, and the verdict under a stated rule.

Money is exact decimal arithmetic. Everything else is a Quantity; an interval that straddles a limit makes the verdict
uncertain, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from math import inf

from octavo.core.quantity import Kind, Quantity
from octavo.plan.radio import Radio
from octavo.plan.reckon import ends, scaled, total, unknown
from octavo.plan.split import Cut, Link, best

DAYS = 365
JOULES_PER_WATT_HOUR = 3600
RULE = (
    "Of the paths that keep every requirement, the one that costs least per day; among equals the one that answers "
    "sooner, then the one that takes less from the battery."
)


@dataclass(frozen=True)
class Limits:
    """What a path must keep, where given: latency in ms, share of the battery per day, dollars per day."""

    latency_ms: Decimal | None = None
    battery: Decimal | None = None
    cost: Decimal | None = None
    private: bool = False
    offline: bool = False


NO_BATTERY = unknown("Wh")


@dataclass(frozen=True)
class Question:
    """The inputs. Times in ms, energy in J per query, `price` in $ per query, `queries` per user and day, bytes per
    query, rates in bit/s (None: not given), `battery` in Wh, `device_cost`: $ a year for the on-device build.

    `device_out`: why the model cannot run on the device at all, if so. `cuts`: of the graph, for the split path.
    """

    device_ms: Quantity
    device_j: Quantity
    round_trip_ms: Quantity
    server_ms: Quantity
    price: Decimal
    queries: Decimal
    users: Decimal
    radio: Radio
    up_bytes: Decimal = Decimal(0)
    down_bytes: Decimal = Decimal(0)
    uplink: Decimal | None = None
    downlink: Decimal | None = None
    battery: Quantity = NO_BATTERY
    device_cost: Decimal = Decimal(0)
    limits: Limits = Limits()
    device_out: str = ""
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Money:
    """Dollars a day: exact, or between two exact ends."""

    value: Decimal
    low: Decimal
    high: Decimal

    def quantity(self, days: int, unit: str) -> Quantity:
        """As a Quantity over that many days."""
        if self.low == self.high:
            return Quantity(float(self.value * days), unit, Kind.EXACT)
        low, value, high = (float(end * days) for end in (self.low, self.value, self.high))
        source = "price taken in proportion to the server's share of the work; high: the full price"
        return Quantity(value, unit, Kind.ESTIMATED, low, high, source=source)


@dataclass(frozen=True)
class Check:
    """One requirement of one path: what was found, in words; whether it is kept; whether that is sure (a limit inside
    an interval, or an unknown figure, is not)."""

    text: str
    kept: bool
    sure: bool


@dataclass(frozen=True)
class Path:
    """One way to answer. `battery_j`: J per user and day; `battery`: that as a share of a full charge."""

    name: str
    latency_ms: Quantity
    cost: Money
    battery_j: Quantity
    battery: Quantity
    checks: tuple[Check, ...] = ()
    cut: Cut | None = None

    @property
    def out(self) -> bool:
        return any(not check.kept for check in self.checks)

    @property
    def surely_out(self) -> bool:
        return any(not check.kept and check.sure for check in self.checks)

    @property
    def doubts(self) -> tuple[str, ...]:
        return tuple(check.text for check in self.checks if not check.sure)


@dataclass(frozen=True)
class Verdict:
    """The winner's name (None where no path is left), all paths, and why the choice is uncertain, if it is."""

    chosen: str | None
    paths: tuple[Path, ...]
    doubts: tuple[str, ...]

    def path(self, name: str) -> Path:
        return next(path for path in self.paths if path.name == name)


def decide(question: Question) -> Verdict:
    """Work every path out (a split only where the device's latency is known) and choose by `RULE`."""
    candidates = [_device(question), _cloud(question)]
    if question.cuts and question.device_ms.value is not None:
        candidates.append(_split(question))
    paths = tuple(replace(path, checks=_checks(path, question)) for path in candidates)
    left = sorted((path for path in paths if not path.out), key=_rank)
    maybe = [path for path in paths if path.out and not path.surely_out]
    if not left:
        return Verdict(None, paths, tuple(f"{path.name}: {doubt}" for path in maybe for doubt in path.doubts))
    doubts = [f"{left[0].name}: {doubt}" for doubt in left[0].doubts] + _close(left[0], left[1:])
    doubts += [f"{p.name}: {doubt}" for p in maybe if _rank(p) < _rank(left[0]) for doubt in p.doubts]
    return Verdict(left[0].name, paths, tuple(doubts))


def _device(question: Question) -> Path:
    daily = question.device_cost / DAYS
    spent = scaled(question.device_j, float(question.queries))
    return Path("device", question.device_ms, Money(daily, daily, daily), spent, _share(spent, question.battery))


def _cloud(question: Question) -> Path:
    link = _link(question)
    parts = [question.round_trip_ms, question.server_ms, _transfer(link, question.up_bytes, question.down_bytes)]
    daily = question.price * question.queries * question.users
    spent = scaled(_radio_j(question, question.up_bytes, question.down_bytes), float(question.queries))
    return Path("cloud", total("ms", parts), Money(daily, daily, daily), spent, _share(spent, question.battery))


def _split(question: Question) -> Path:
    """The cut of the least latency that leaves work on both sides. On-device costs are paid too."""
    inner = tuple(cut for cut in question.cuts if 0 < cut.index < len(question.cuts) - 1) or question.cuts
    link = _link(question)
    cut = best(inner, question.device_ms.value or 0.0, question.server_ms.value or 0.0, link)
    up, down = Decimal(cut.up_bytes), Decimal(cut.down_bytes)
    parts = [
        _portion(question.device_ms, cut.device_share), question.round_trip_ms,
        _portion(question.server_ms, cut.server_share), _transfer(link, up, down),
    ]  # fmt: skip
    own, full = question.device_cost / DAYS, question.price * question.queries * question.users
    part = own + full * Decimal(str(cut.server_share))
    spent = total("J", [_portion(question.device_j, cut.device_share), _radio_j(question, up, down)])
    spent = scaled(spent, float(question.queries))
    latency, cost = total("ms", parts), Money(part, part, own + full)
    return Path("split", latency, cost, spent, _share(spent, question.battery), cut=cut)


def _portion(whole: Quantity, share: float) -> Quantity:
    """Part of a figure, by an estimated share."""
    part = scaled(whole, share)
    return part if part.value is None else replace(part, kind=Kind.ESTIMATED, source="shared out by a roofline")


def _link(question: Question) -> Link:
    rates = (None if rate is None else float(rate) for rate in (question.uplink, question.downlink or question.uplink))
    return Link(question.round_trip_ms.value or 0.0, *rates)


def _transfer(link: Link, up: Decimal, down: Decimal) -> Quantity:
    return Quantity(link.transfer_ms(float(up), float(down)), "ms", Kind.EXACT)


def _radio_j(question: Question, up: Decimal, down: Decimal) -> Quantity:
    """J that the radio takes for one query."""
    radio = question.radio
    parts = [scaled(radio.per_byte_up, float(up), "J"), scaled(radio.per_byte_down, float(down), "J"), radio.per_query]
    return total("J", parts, source=radio.per_query.source or radio.per_byte_up.source)


def _share(spent: Quantity, battery: Quantity) -> Quantity:
    """J as a share of a full charge."""
    if spent.value is None or battery.value is None:
        return unknown("")
    (low, value, high), (small, whole, large) = ends(spent), ends(battery)
    kind = total("", [replace(spent, unit=""), replace(battery, unit="")]).kind
    scale = 1 / JOULES_PER_WATT_HOUR
    return Quantity(value / whole * scale, "", kind, low / large * scale, high / small * scale)


def _checks(path: Path, question: Question) -> tuple[Check, ...]:
    """Every requirement that was given, of one path. A value beyond its limit is out; surely so if its low end is."""
    limits = question.limits
    found = []
    if path.name == "device" and question.device_out:
        found.append(Check(question.device_out, False, True))
    if path.name != "device":
        found += [Check("data may not leave the device", False, True)] * limits.private
        found += [Check("it must work offline", False, True)] * limits.offline
    figures = (
        ("latency", path.latency_ms, limits.latency_ms, "{:.4g} ms"),
        ("battery per day", path.battery, limits.battery, "{:.3g} %"),
        ("cost per day", path.cost.quantity(1, "USD"), limits.cost, "${:,.2f}"),
    )
    return (*found, *(_check(*figure) for figure in figures if figure[2] is not None))


def _check(what: str, figure: Quantity, limit: Decimal | None, shown: str) -> Check:
    percent = 100 if shown.endswith("%") else 1
    bound = float(limit or 0)
    words = shown.format(bound * percent)
    if figure.value is None:
        return Check(f"{what} is unknown, the limit is {words}", True, False)
    low, value, high = ends(figure)
    between = f" ({shown.format(low * percent)} to {shown.format(high * percent)})" if low < high else ""
    kept = value <= bound
    sure = high <= bound or low > bound
    return Check(f"{what} {shown.format(value * percent)}{between}, the limit is {words}", kept, sure)


def _rank(path: Path) -> tuple[Decimal, float, float]:
    """Cost, latency, battery; what is unknown comes last."""
    latency, joules = path.latency_ms.value, path.battery_j.value
    return path.cost.value, inf if latency is None else latency, inf if joules is None else joules


def _close(first: Path, others: list[Path]) -> list[str]:
    """Who could come first inside the intervals."""
    doubts = []
    for other in others:
        if first.cost.value != other.cost.value:
            if other.cost.low < first.cost.high:
                doubts.append(f"the costs of {first.name} and {other.name} overlap")
        elif first.latency_ms.value is None or other.latency_ms.value is None:
            doubts.append(f"{first.name} and {other.name} cost the same, and a latency is unknown")
        elif first.latency_ms.value != other.latency_ms.value and ends(other.latency_ms)[0] < ends(first.latency_ms)[2]:
            doubts.append(f"{first.name} and {other.name} cost the same, and their latencies overlap")
    return doubts
