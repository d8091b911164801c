"""The page around the report's parts: one file that asks the network for nothing."""

import base64
import hashlib
from collections.abc import Sequence

from scaling.results.figures.view import Part
from scaling.results.html import escape

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--soft:#5a6370;--line:#c9ced6;--bad:#b3261e;
--s0:#0b6fb8;--s1:#c8590b;--s2:#1d8348;--s3:#a23b8c;--s4:#8a6d00;--s5:#00808a;--s6:#6b4fbb;--s7:#7a4a2b}
@media(prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e6e9ee;--soft:#a3acb9;--line:#4a525e;
--bad:#ff8a80;--s0:#5db2f2;--s1:#ff9d5c;--s2:#63cf8e;--s3:#ea92d8;--s4:#e2c044;--s5:#4fd0d9;--s6:#b5a1ff;
--s7:#d3a17e}}
body{background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif;max-width:68rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.2rem;margin:2.5rem 0 .3rem}
p,li{max-width:48rem}.reading{color:var(--soft);margin-top:0}.bad{color:var(--bad)}
nav a{margin-right:1rem;display:inline-block}a{color:var(--s0)}
figure{margin:1rem 0}figcaption{font-weight:600;overflow-wrap:anywhere}
figure svg{width:100%;height:auto;display:block}
svg text{font-family:system-ui,sans-serif!important}
.scroll{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td:first-child{min-width:14rem}
th{background:var(--paper);white-space:nowrap}td.n{text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}
th button{font:inherit;font-weight:600;color:inherit;background:none;border:0;padding:0;cursor:pointer}
th[aria-sort=ascending] button:after{content:" \\2191"}
th[aria-sort=descending] button:after{content:" \\2193"}
pre{overflow-x:auto;font-size:.8rem;border:1px solid var(--line);padding:.6rem}
@media print{nav{display:none}}
"""
# Headings of tables become buttons that sort; without scripts they stay headings.
SCRIPT = """
for(const table of document.querySelectorAll("table")){const body=table.tBodies[0];
table.querySelectorAll("th").forEach((th,column)=>{const button=document.createElement("button");
button.type="button";button.textContent=th.textContent;th.replaceChildren(button);
button.addEventListener("click",()=>{const up=th.getAttribute("aria-sort")!=="ascending";
table.querySelectorAll("th").forEach(each=>each.removeAttribute("aria-sort"));
th.setAttribute("aria-sort",up?"ascending":"descending");
const key=row=>{const cell=row.cells[column];
return cell.dataset.value===undefined?null:Number(cell.dataset.value)};
const order=(a,b)=>{const x=key(a),y=key(b);if(x!==null&&y!==null)return x-y;
if(x!==null)return -1;if(y!==null)return 1;
return a.cells[column].textContent.localeCompare(b.cells[column].textContent)};
const rows=[...body.rows].sort(order);if(!up)rows.reverse();body.append(...rows)})})}
"""


def page(title: str, intro: str, parts: Sequence[Part]) -> str:
    """A whole document. `title` is text; `intro` and the parts' bodies are HTML. Its policy lets a browser
    run this script alone and load nothing."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<a href="#part{n}">{escape(part.title)}</a>' for n, part in enumerate(parts))
    sections = "".join(
        f'<section><h2 id="part{n}">{escape(part.title)}</h2>'
        f"<p class=reading>{escape(part.reading)}</p>{part.body}</section>"
        for n, part in enumerate(parts)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"{intro}<nav>{links}</nav>{sections}<script>{SCRIPT}</script></body></html>\n"
    )
