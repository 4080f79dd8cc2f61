"""Lines of text that pre-tokenizers split differently: digits, contractions, white space, scripts, punctuation."""

from __future__ import annotations

PROBES = (
    "Don't WE'LL they're I'M you've he'd it's 'tis O'Neil y'all'd've rock'n'roll",
    "1 22 333 4444 55555 666666 7777777 88888888 3.14 1,234,567.89 0x1F 10e-5 2024-05-01 12:30",
    "a  b   c    d     e\t\tf\t \tg",
    "   three before and three behind   ",
    "one\n\n\ntwo\n \n three\r\nfour \n\n  five",
    "\n\n \n\t\n  x\n",
    "def f(x):\n    if x >= 10:\n\t\treturn x ** 2  # squared\n\n\n",
    "HelloWorld camelCase XMLHttpRequest snake_case __init__ iPhone15Pro ABCs",
    "!!!???...---===///\\\\ <<>> {}[]() $x += 1; a->b::c #tag @me 50% ~/.bashrc",
    "我想在apple工作1314151天～ 你好，世界！“引号”——破折号……",
    "日本語のテキスト、カタカナとひらがな。ABCｱｲｳ　全角",
    "안녕하세요 세계 123번",
    "Äpfel café naïve façade Łódź Žižek straße ÉCOLE Cửa Việt",
    "нещо на Български, ЁЛКА и ёлка: 42-й",
    "Καλημέρα κόσμε, ΆΛΦΑ",
    "ქართული ენა, Հայերեն",
    "مرحبا بالعالم ١٢٣ שלום עולם",
    "½ ² ³ Ⅳ ① ٣٤ ４５ ₂ x²+y²",
    "हिन्दी में कुछ शब्द और १२३",
    "កាន់តែពិសេសអាច ภาษาไทย ไม่มี",
    "🚀 (normal) 😶\u200d🌫️ (several in one) ✅ 🦙🦙 👩🏽\u200d💻",
    "“curly” ‘single’ — dash – en… «guillemets» „low“ ?” !’ it’s",
    "https://example.com/a_b?c=d&e=f%20g#h me@example.org C:\\dir\\file.txt",
    "± × ÷ € £ ¥ © ® ™ ° § ¶ • → ∑ ≤ ∞ √",
    "aaaaaaaa bbbbbbbbbbbbbbb zzzzzzzzzzzzzzzzzzzzzzzz ................ ________",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "'s 't 'RE ''d \"'ll\" 'Ve' x'y'z 1's",
    "+1 -2 *3 /4 =5 (6) [7] {8} <9> $10 #11 a1b2c3 v1.2.3-rc4",
    '{"key": [1, 2.5, null], "text": "line\\n", "nested": {"a": true}}',
    "<table><tr><td> cell </td></tr></table> &nbsp; **bold** _it_ `code`",
    "Zürich–Genève Nº 5, 3ᵉ étage; São Paulo / Ångström",
    "x",
    " ",
)
"""A vocabulary that is read with the wrong pre-tokenizer gives other tokens on some of these. All characters are
composed: llama.cpp composes none. Spaces beyond ASCII are left out: some of its pre-tokenizers take them for letters,
for published models too."""
