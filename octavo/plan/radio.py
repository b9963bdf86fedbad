"""What the radio takes from the battery when nobody measured it on the device at hand: a published power model.

Huang, Qian, Gerber, Mao, Sen, Spatscheck, "A Close Examination of Performance and Power Characteristics of 4G LTE
Networks", MobiSys 2012, table 4: transferring at a rate t takes P = α·t + β, and a radio that was asleep is first
promoted and afterwards stays up for a tail. Phones of 2012: newer radios differ, so every figure made of these is
`estimated`, with an interval from Wi-Fi (less) to 3G (more).
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.core.quantity import Kind, Quantity

SOURCE = "Huang et al., MobiSys 2012, table 4"
DATE = "2012-06"
MEDIAN_UP, MEDIAN_DOWN = 6e6, 13e6  # bit/s: the LTE medians of the same paper
BITS_PER_BYTE, BITS_PER_MEGABIT = 8, 1e6
WAKES_SHARE = 0.5  # our judgement: every other query finds the radio awake for something else


@dataclass(frozen=True)
class Link:
    """One row of the table: mW per Mbit/s up and down, mW while active."""

    up: float
    down: float
    base: float

    def per_byte(self, slope: float, rate: float) -> float:
        """J per byte at `rate` bit/s: (α·t + β) / t, in mW per Mbit/s = mJ per Mbit."""
        return (slope + self.base / (rate / BITS_PER_MEGABIT)) * 1e-3 * BITS_PER_BYTE / BITS_PER_MEGABIT


LTE = Link(438.39, 51.97, 1288.04)
UMTS = Link(868.98, 122.12, 817.88)
WIFI = Link(283.17, 137.01, 132.86)
LTE_WAKE = 1.2107 * 0.2601  # J: promotion, W · s
LTE_TAIL = 1.0600 * 11.576  # J


@dataclass(frozen=True)
class Radio:
    """J per byte sent, per byte received, and per query for waking the radio and its tail."""

    per_byte_up: Quantity
    per_byte_down: Quantity
    per_query: Quantity


def published(uplink: float | None = None, downlink: float | None = None) -> Radio:
    """The published model at these rates in bit/s (by default its own medians): LTE, between Wi-Fi and 3G."""
    up, down = uplink or MEDIAN_UP, downlink or MEDIAN_DOWN
    said = f"{SOURCE}: LTE; low and high: the least and most of Wi-Fi, LTE and 3G"
    links = (LTE, UMTS, WIFI)
    sent = [link.per_byte(link.up, up) for link in links]
    received = [link.per_byte(link.down, down) for link in links]
    alone = LTE_WAKE + LTE_TAIL
    return Radio(
        Quantity(
            sent[0], "J/B", Kind.ESTIMATED, min(sent), max(sent),
            source=f"{said}, at {up / 1e6:g} Mbit/s", date=DATE,
        ),
        Quantity(
            received[0], "J/B", Kind.ESTIMATED, min(received), max(received),
            source=f"{said}, at {down / 1e6:g} Mbit/s", date=DATE,
        ),
        Quantity(
            WAKES_SHARE * alone, "J", Kind.ESTIMATED, 0.0, alone, date=DATE,
            source=f"{SOURCE}: LTE promotion and 11.6 s tail; low: the radio is awake anyway; high: each query alone; "
            "value: every other query alone (our judgement)",
        ),
    )  # fmt: skip
