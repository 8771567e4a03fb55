"""Parts of the pages: the HTML document, its sections, tables and cards, and their style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from raysel.report import numbers

NBSP = "\u00a0"


def document(title: str, body: str) -> str:
    """Return a complete page that fetches nothing; both arguments are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def dot(colour: str) -> str:
    """Return a dot of a colour."""
    return f'<i class="dot" style="background:{colour}"></i>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], stack: bool = True) -> str:
    """Cells are HTML. On a narrow page a stacked table shows every row as a list of its own."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "\n".join(
        "<tr>"
        + f'<th scope="row">{row[0]}</th>'
        + "".join(f'<td data-head="{heads[i]}">{bound(cell)}</td>' for i, cell in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table{" class=stack" if stack else ""}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n"
    )


def card(svg: str, title: str, caption: str) -> str:
    """Return a figure with a title and a caption."""
    return (
        f'<figure class="card">\n<h3>{title}</h3>\n<div class="chart">\n{svg}</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
    )


def grid(cards: Sequence[str], kind: str = "") -> str:
    """Return cards side by side."""
    opening = f'<div class="{f"grid {kind}".strip()}">\n'
    return opening + "\n".join(cards) + "\n</div>" if cards else ""


def samples(shown: Sequence[tuple[int, str | None, str | None, str]]) -> str:
    """Return a list of rows: id, image as base64-encoded PNG or None, text or None, and a caption as HTML."""
    items = []
    for identity, image, words, caption in shown:
        name = f"sample_id {identity}"
        what = (
            f'<img src="data:image/png;base64,{text(image)}" alt="{name}" title="{name}">'
            if image is not None
            else f"<q>{text(_short(words))}</q>"
            if words is not None
            else f"<span>{name}</span>"
        )
        items.append(f"<li>{what}<small>{caption}</small></li>")
    kind = "thumbs" if shown and shown[0][1] is not None else "texts"
    return f'<ul class="{kind}">{"".join(items)}</ul>'


def _short(words: str, most: int = 160) -> str:
    words = " ".join(words.split())
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def section(title: str, body: str, identity: str = "") -> str:
    """Return a section with a heading."""
    mark = f' id="{identity}"' if identity else ""
    return f"<section{mark}>\n<h2>{title}</h2>\n{body}\n</section>"


def many(count: int, one: str, more: str = "") -> str:
    """Return a number with its noun, in the singular or plural."""
    return f"{numbers.count(count)}{NBSP}{one if count == 1 else more or one + 's'}"


def bound(text: str) -> str:
    """Keep a number and its unit on one line, and give it a true minus."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text).replace(" %", f"{NBSP}%")


def moment(text: str) -> str:
    """Return ``2026-03-14T09:26:53+00:00`` as ``2026-03-14 09:26 UTC``, and any other text unchanged."""
    found = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(Z|[+-]00:?00|[+-]\d\d:?\d\d)?", text
    )
    if not found:
        return text
    zone = found[3] or ""
    zone = " UTC" if zone in ("Z", "+00:00", "-00:00", "+0000") else f" {zone}" if zone else ""
    return f"{found[1]} {found[2]}{zone}"


def text(value: object, lines: bool = False) -> str:
    """Escaped text that HTML can hold, quotes included."""
    text = str(value)
    if not lines:
        text = " ".join(text.split())
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)
    return escape(text, quote=True)


_CSS = """
:root{--page:#fbfbfa;--ink:#1f2933;--quiet:#5f6b7a;--line:#e2e5ea;--accent:#0068b0;--more:#b04a00;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media (prefers-color-scheme:dark){:root{--page:#14181d;--ink:#e6e9ed;--quiet:#a0abb8;--line:#313942;
--accent:#6cb8f0;--more:#f0a060}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 var(--sans);
font-variant-numeric:tabular-nums lining-nums}
main{max-width:900px;margin:0 auto;padding:64px 24px 72px}
h1,h2,h3,p,dl,dd,figure{margin:0}
h1{font-size:2.5rem;line-height:1.15;letter-spacing:-.02em;font-weight:680;overflow-wrap:anywhere}
h2{font-size:1.3rem;letter-spacing:-.01em;font-weight:650;margin-bottom:16px}
h3{font-size:.98rem;font-weight:650;line-height:1.35}
a{color:var(--accent)}
.kicker{font-size:.8rem;letter-spacing:.09em;text-transform:uppercase;color:var(--accent);font-weight:650;
margin-bottom:6px}
.headline{font-size:1.22rem;line-height:1.5;margin-top:14px;max-width:44em;text-wrap:pretty}
.facts{color:var(--quiet);font-size:.9rem;margin-top:10px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:0;margin-top:28px;
border-top:2px solid var(--ink);border-bottom:1px solid var(--line)}
.tiles>div{padding:14px 16px 16px 0}
.tiles dt{font-size:.85rem;color:var(--quiet)}
.tiles b{display:block;font-size:2rem;line-height:1.25;font-weight:650;letter-spacing:-.02em}
.tiles span{display:block;font-size:.85rem;line-height:1.4;color:var(--quiet)}
.tiles .more b,.more{color:var(--more)}
.tiles-of{font-size:.9rem;margin-top:28px}
.against{color:var(--quiet);margin:0 .45em 0 .2em}
.tag{color:var(--quiet);font-weight:400;font-size:.85em;margin-left:.25em}
.tiles-of+.tiles{margin-top:8px}
section,footer{margin-top:56px}
.lead{max-width:44em;margin-bottom:20px}
.note{color:var(--quiet);font-size:.9rem;margin-top:12px;max-width:52em}
.missing{color:var(--quiet);font-size:.95rem;margin-top:12px}
.quiet{color:var(--quiet)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:9px 0 9px 14px;text-align:right;vertical-align:baseline;white-space:nowrap}
th:first-child{text-align:left;padding-left:0;white-space:normal}
thead th{font-weight:500;font-size:.82rem;line-height:1.3;color:var(--quiet);vertical-align:bottom;white-space:normal;
border-bottom:1.5px solid var(--ink)}
tbody th{font-weight:600}
tbody tr{border-bottom:1px solid var(--line)}
.dot{display:inline-block;width:.62em;height:.62em;border-radius:50%;margin-right:.5em;
-webkit-print-color-adjust:exact;print-color-adjust:exact;outline:1px solid rgba(255,255,255,.35)}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:20px}
.grid>.card:only-child{max-width:560px}
.card{border-radius:10px;padding:18px 18px 16px;display:flex;flex-direction:column}
.card:not(.plain){background:#fff;color:#1f2933;border:1px solid #e2e5ea;--quiet:#5f6b7a}
.card.plain{padding:18px 0 0 6px}
.chart{margin:10px -8px 0;flex:1}
.costs{align-items:start}
.wide{grid-column:1/-1}
p,dd,figcaption{text-wrap:pretty}
.chart svg{display:block;width:100%;height:auto}
figcaption{font-size:.86rem;line-height:1.45;color:var(--quiet);margin-top:8px}
figcaption.text{margin-top:14px}
h4{font-size:.86rem;font-weight:500;color:var(--quiet);margin:14px 0 6px}
.thumbs,.texts{list-style:none;margin:0;padding:0}
.thumbs{display:grid;grid-template-columns:repeat(12,minmax(0,1fr));gap:6px}
.thumbs img{display:block;width:100%;image-rendering:pixelated;border:1px solid #e2e5ea}
.thumbs small,.texts small{color:var(--quiet);font-size:.76rem}
.texts li{font-size:.86rem;line-height:1.4;padding:3px 0;display:flex;justify-content:space-between;gap:14px}
.said{margin:0;padding-left:1.1em;max-width:46em}
.said li{margin:0 0 8px}
.reading{max-width:46em}
.reading dt{font-weight:650}
.reading dd{margin:2px 0 16px;color:var(--quiet)}
details{border:1px solid var(--line);border-radius:10px;padding:12px 16px}
summary{cursor:pointer;color:var(--quiet)}
pre{font:.84rem/1.5 var(--mono);overflow-x:auto;margin:12px 0 4px;white-space:pre-wrap;overflow-wrap:anywhere}
footer{border-top:1px solid var(--line);padding-top:18px;color:var(--quiet);font-size:.88rem}
footer h2{font-size:.88rem;margin-bottom:2px}
@media (max-width:640px){
main{padding:36px 16px 48px}
h1{font-size:2rem}
.headline{font-size:1.1rem}
.tiles{grid-template-columns:1fr 1fr}
.tiles b{font-size:1.7rem}
.grid{grid-template-columns:minmax(0,1fr)}
.thumbs{grid-template-columns:repeat(6,minmax(0,1fr))}
.card{padding:14px 12px 12px}
.card.plain{padding:4px 0 0}
section,footer{margin-top:44px}
table.stack thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table.stack,table.stack tbody{display:block}
table.stack tr{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));column-gap:28px;padding:10px 0 12px}
table.stack th{grid-column:1/-1;padding:0 0 4px}
table.stack tr{font-size:.88rem}
table.stack th{font-size:1rem}
table.stack td{display:flex;justify-content:space-between;padding:2px 0}
table.stack td::before{content:attr(data-head);color:var(--quiet)}
th,td{padding-left:10px}
}
@media print{
:root{--page:#fff;--ink:#1f2933;--quiet:#5f6b7a;--line:#e2e5ea;--accent:#0068b0;--more:#b04a00}
body{font-size:11pt}
main{max-width:none;padding:0}
section{margin-top:28px}
.card,tr,.tiles>div,.reading dd{break-inside:avoid}
h2,h3,dt{break-after:avoid}
}
"""
