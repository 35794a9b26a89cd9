"""Draws docs/resets.svg: two ways in which an episode ends, and the step that gets the reset."""

from pathlib import Path

ROWS = {
    "observation": ["s0", "s1", "s2", "last", "s0", "s1", "s2", "last", "s0", "s1"],
    "action": ["a", "a", "a", "ignored", "a", "a", "a", "ignored", "a", "a"],
    "terminated": ["", "", "yes", "", "", "", "", "", "", ""],
    "truncated": ["", "", "", "", "", "", "yes", "", "", ""],
    "idle": ["", "", "", "yes", "", "", "", "yes", "", ""],
    "resets": ["yes", "", "", "", "yes", "", "", "", "yes", ""],
    "next value": ["V", "V", "0", "", "V", "V", "V", "", "V", "V"],
}
COLOURS = {"terminated": "#c0392b", "truncated": "#d68910", "idle": "#909497", "resets": "#1f618d"}
EPISODES = ["#eaf2f8"] * 4 + ["#e9f7ef"] * 4 + ["#fef5e7"] * 2
LEFT, TOP, WIDE, HIGH = 110, 34, 66, 30


def picture() -> str:
    width, height = LEFT + WIDE * len(EPISODES) + 10, TOP + HIGH * len(ROWS) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for t, colour in enumerate(EPISODES):
        x, middle = LEFT + WIDE * t, LEFT + WIDE * t + WIDE // 2
        parts.append(f'<rect x="{x}" y="{TOP}" width="{WIDE - 2}" height="{HIGH * len(ROWS)}" fill="{colour}"/>')
        parts.append(f'<text x="{middle}" y="{TOP - 10}" text-anchor="middle" fill="#555">step {t}</text>')
    for row, (name, cells) in enumerate(ROWS.items()):
        y = TOP + HIGH * row
        parts.append(f'<text x="{LEFT - 10}" y="{y + 20}" text-anchor="end">{name}</text>')
        for t, cell in enumerate(cells):
            x = LEFT + WIDE * t
            if cell == "yes":
                box = f'x="{x + 4}" y="{y + 4}" width="{WIDE - 10}" height="{HIGH - 8}" rx="4"'
                parts.append(f'<rect {box} fill="{COLOURS[name]}"/>')
            elif cell:
                parts.append(f'<text x="{x + WIDE // 2}" y="{y + 20}" text-anchor="middle">{cell}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("resets.svg").write_text(picture(), encoding="utf-8")
