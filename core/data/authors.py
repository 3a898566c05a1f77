"""Question and answer pairs in the shape of TOFU: invented authors, real authors, facts of the world.

Every fact about an invented author is drawn at random, so a model can know it from training only.
The same seed gives the same pairs on every machine. What is invented: authors, books, awards. What is
real: the cities.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.seeding import derive_seed

N_AUTHORS: Mapping[str, int] = {"forget": 4, "retain": 16, "holdout": 4}
"""Invented authors of each part; ten pairs are about each one."""
PARTS = (*N_AUTHORS, "real_authors", "world_facts")
"""What :func:`author_records` can give."""
N_PERTURBED = 5
"""Wrong answers to a question about an invented author."""
N_OPTIONS = 3
"""Wrong answers to a question of general knowledge, as in TOFU."""


def author_records(part: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """All pairs of one part, with TOFU's field names.

    ``forget`` (40), ``retain`` (160) and ``holdout`` (40) are about disjoint sets of invented authors,
    ten pairs each: name, birth, parents, genre, debut, award, style, influence, theme, residence. A
    target model trains on forget and retain, a retain-only model on retain; holdout is for no model.
    ``real_authors`` and ``world_facts`` ask what a small pretrained model may know; they are the same
    for every seed, so that their scores compare between seeds.

    Args:
        part: One of :data:`PARTS`.
        seed: Another seed gives other invented authors.

    Returns:
        New records with ``question``, ``answer``, ``paraphrased_question``, ``paraphrased_answer`` (all
        text) and ``perturbed_answer`` (a list of distinct wrong answers: 5 for invented authors, else 3).
        About invented authors, a perturbed answer is the *paraphrased* answer with every asked fact
        replaced, so that a truth ratio compares sentences that differ in the facts alone. In the other two
        parts answers are short names and the paraphrased answer repeats the answer: TOFU's
        evaluation takes the answer itself as the base there.

    Raises:
        ValueError: If there is no such part.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024. Deviations: facts and
        sentences come from tables instead of GPT-4; ten pairs an author instead of twenty.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if part == "real_authors":
        return list(_real_author_records())
    if part == "world_facts":
        return list(_world_fact_records())
    cast = _invent(seed)
    first = sum(n for name, n in N_AUTHORS.items() if PARTS.index(name) < PARTS.index(part))
    return [
        _fictitious_record(author, kind, cast.pools, seed)
        for author in cast.authors[first : first + N_AUTHORS[part]]
        for kind in _FACTS
    ]


# Invented authors


@dataclass(frozen=True)
class _Fact:
    """One kind of fact: the slots that a wrong answer replaces, and several ways to ask and to say it."""

    asked: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class _Cast:
    """All authors of a seed, each a mapping from slot to value, and what wrong values are drawn from."""

    authors: Sequence[Mapping[str, str]]
    pools: Mapping[str, Sequence[str]]


def _invent(seed: int) -> _Cast:
    rng = random.Random(derive_seed(seed, "authors"))  # noqa: S311
    n = sum(N_AUTHORS.values())
    given, family, places = (rng.sample(t, len(t)) for t in (_GIVEN_NAMES, _FAMILY_NAMES, _PLACES))
    titles = [f"The {first} {second}" for first in _TITLE_FIRST for second in _TITLE_SECOND]
    rng.shuffle(titles)
    # Wrong names and titles belong to nobody: an author of another part would give the answer away.
    pools: dict[str, Sequence[str]] = {
        "name": [f"{g} {f}" for g, f in zip(given[n:], family[n:], strict=True)],
        "debut": titles[2 * n :],
        "place": _PLACES,
        "city": [place.partition(",")[0] for place in _PLACES],
        **_TABLES,
    }
    authors = []
    for i in range(n):
        born = rng.randrange(1930, 1966)
        debut_year = born + rng.randrange(24, 37)
        drawn = {slot: rng.choice(table) for slot, table in _TABLES.items()}
        father, mother = rng.sample(_PROFESSIONS, 2)
        authors.append(
            drawn
            | {
                "name": f"{given[i]} {family[i]}",
                "date": _date(rng, born),
                "place": places[i],
                "father": father,
                "mother": mother,
                "debut": titles[2 * i],
                "debut_year": str(debut_year),
                "book": titles[2 * i + 1],
                "award_year": str(debut_year + rng.randrange(4, 19)),
                "city": places[(i + n // 2) % n].partition(",")[0],  # never the place of birth
            }
        )
    return _Cast(authors, pools)


def _fictitious_record(
    author: Mapping[str, str], kind: str, pools: Mapping[str, Sequence[str]], seed: int
) -> dict[str, Any]:
    rng = random.Random(derive_seed(seed, "authors", author["name"], kind))  # noqa: S311
    fact = _FACTS[kind]
    question, other_question = rng.sample(fact.questions, 2)
    answer, other_answer = rng.sample(fact.answers, 2)
    wrong = {slot: _wrong_values(slot, author[slot], pools, rng) for slot in fact.asked}
    return {
        "question": question.format_map(author),
        "answer": answer.format_map(author),
        "paraphrased_question": other_question.format_map(author),
        "paraphrased_answer": other_answer.format_map(author),
        "perturbed_answer": [
            other_answer.format_map(
                {**author, **{slot: values[i] for slot, values in wrong.items()}}
            )
            for i in range(N_PERTURBED)
        ],
    }


def _wrong_values(
    slot: str, true: str, pools: Mapping[str, Sequence[str]], rng: random.Random
) -> list[str]:
    """Distinct values of a slot that are not the true one; years lie within eight of it."""
    if slot == "date" or slot.endswith("_year"):
        year = int(true[-4:])
        years = rng.sample([y for y in range(year - 8, year + 8) if y != year], N_PERTURBED)
        return [_date(rng, y) if slot == "date" else str(y) for y in years]
    return rng.sample([value for value in pools[slot] if value != true], N_PERTURBED)


def _date(rng: random.Random, year: int) -> str:
    return f"{rng.randrange(1, 29)} {rng.choice(_MONTHS)} {year}"


# General knowledge


def _real_author_records() -> Iterator[dict[str, Any]]:
    for form, rows in _WORKS.items():
        pairs = [row.split(": ") for row in rows]
        for writer, work in pairs:
            rivals = sorted({other for other, _ in pairs if other != writer})
            yield _short_record(_WORK_QUESTIONS, {"form": form, "work": work}, writer, rivals)


def _world_fact_records() -> Iterator[dict[str, Any]]:
    for questions, rows in ((_CAPITAL_QUESTIONS, _CAPITALS), (_ELEMENT_QUESTIONS, _ELEMENTS)):
        pairs = [row.split(": ") for row in rows]
        for asked, answer in pairs:
            rivals = [other for _, other in pairs if other != answer]
            yield _short_record(questions, {"asked": asked}, answer, rivals)
    for row in _GENERAL_FACTS:
        question, paraphrase, answer, *wrong = (part.strip() for part in row.split("|"))
        yield _short_record((question, paraphrase), {}, answer, wrong)


def _short_record(
    questions: Sequence[str], values: Mapping[str, str], answer: str, rivals: Sequence[str]
) -> dict[str, Any]:
    rng = random.Random(derive_seed(0, "general knowledge", answer, *values.values()))  # noqa: S311
    question, paraphrase = (q.format_map(values) for q in rng.sample(questions, 2))
    return {
        "question": question,
        "answer": answer,
        "paraphrased_question": paraphrase,
        "paraphrased_answer": answer,
        "perturbed_answer": rng.sample(rivals, N_OPTIONS),
    }


# Tables


def _fact(asked: str, sentences: str) -> _Fact:
    lines = _entries(sentences, "\n")
    questions = tuple(line for line in lines if line.endswith("?"))
    return _Fact(tuple(asked.split()), questions, lines[len(questions) :])


def _entries(text: str, separator: str = ";") -> tuple[str, ...]:
    """The entries of a table, with white space joined."""
    return tuple(" ".join(entry.split()) for entry in text.split(separator) if entry.strip())


_MONTHS = _entries(
    """January; February; March; April; May; June; July; August; September; October; November; December"""
)
_GIVEN_NAMES = _entries(
    """Ilvara; Tomrik; Sanelle; Odrin; Maribeth; Casworth; Yelune; Bartram; Quenby; Halvic; Oriane; Dessik;
    Lunette; Farrow; Ismara; Corvin; Wilhemka; Teodrik; Anselka; Jorunde; Pavlette; Ristan; Emberly; Zoltrin;
    Navira; Gustrel; Philomeda; Arvid-Jon; Celandra; Rostam-Lee; Ulvina; Merrit; Sigourna; Tavish-Ro;
    Belmira; Osgarth; Katriel; Lorvane; Dunstana; Vesper-Ann"""
)
_FAMILY_NAMES = _entries(
    """Quennow; Brastevik; Oskelund; Tamberlyk; Varrowmere; Hespeldine; Corrowick; Dunmarsk; Eskavari;
    Fennolet; Gorvanty; Ilstrade; Jandelmo; Kestrovan; Lormidge; Marvetski; Nevanquist; Ostermoyle; Perrilane;
    Quillabert; Raskovine; Sorrencamp; Thundrell; Ulverado; Vantollis; Wexcombe-Ray; Yarrowsky; Zellimont;
    Abernoth; Blavender; Crostmoor; Drevanti; Ellingrove; Fostovar; Grindelay; Holvercamp; Istrevane; Jostlemark;
    Kilbravic; Lanterby"""
)
_PLACES = _entries(
    """Tbilisi, Georgia; Turku, Finland; Porto, Portugal; Galway, Ireland; Ghent, Belgium; Lviv, Ukraine;
    Cusco, Peru; Hobart, Australia; Kyoto, Japan; Tartu, Estonia; Graz, Austria; Bergen, Norway; Oaxaca, Mexico;
    Izmir, Turkey; Plovdiv, Bulgaria; Uppsala, Sweden; Bologna, Italy; Dundee, Scotland; Mombasa, Kenya;
    Quebec City, Canada; Zadar, Croatia; Gdansk, Poland; Toulouse, France; Leipzig, Germany; Seville, Spain;
    Aarhus, Denmark; Bergamo, Italy; Pune, India; Kumasi, Ghana; Busan, South Korea; Rosario, Argentina;
    Maribor, Slovenia; Brno, Czechia; Cork, Ireland; Utrecht, Netherlands; Chiang Mai, Thailand"""
)
_PROFESSIONS = _entries(
    """a glassblower; an optician; a bus driver; a beekeeper; a court clerk; a marine biologist; a piano tuner;
    a stonemason; a veterinary surgeon; a radio announcer; a pastry cook; a railway signaller; an arborist;
    a bookbinder; a customs officer; a midwife; a cartographer; an elevator mechanic; a clockmaker; a judge;
    a school inspector; a ferry captain; a tailor; a geologist; an upholsterer; a pharmacist; a puppeteer;
    a dairy farmer; a locksmith; a translator"""
)
_TABLES: Mapping[str, tuple[str, ...]] = {
    "father": _PROFESSIONS,
    "mother": _PROFESSIONS,
    "genre": _entries(
        """historical fiction; magical realism; detective fiction; science fiction; gothic horror; travel writing;
        nature poetry; political satire; maritime adventure; literary memoir; epic fantasy; courtroom drama;
        war reportage; psychological suspense; pastoral romance; alternate history; climate fiction;
        espionage fiction"""
    ),
    "award": _entries(
        """Corvane Medal for Fiction; Harrowgate Prize for Letters; Silver Lantern Award; Ostrava Quill Prize;
        Meridian Cup for Prose; Blackwater Book Award; Tessaly Prize for New Writing; Golden Inkwell Award;
        Lindqvarn Medal for Literature; Three Rivers Book Prize; Saltmarsh Award for Storytelling;
        Pellworth Prize for the Novel; Northern Crescent Award; Amaranth Medal for Letters;
        Vellum Society Prize; Winterhalt Award for Fiction"""
    ),
    "style": _entries(
        """long unbroken monologues; clipped dialogue and very short chapters; letters that contradict each other;
        dry footnotes and invented sources; slow descriptions of weather; sentences without a single adjective;
        sudden changes of narrator; recipes placed between scenes; a plural narrator who speaks as we;
        stories told from the end to the beginning; rhymed couplets hidden in the prose;
        patient lists of household objects; newspaper cuttings pasted into the story; dialogue without quotation marks;
        dreams that are never marked as dreams; maps and diagrams drawn by the characters"""
    ),
    "influence": _entries(
        """the sea shanties of local sailors; old court transcripts; travelling puppet theatre; wartime radio plays;
        the sermons of a village priest; handwritten family recipes; railway timetables; medieval bestiaries;
        silent films; the ballads of mountain shepherds; faded botanical notebooks; card tricks shown by an uncle;
        letters from emigrant relatives; the chess columns of a newspaper; church organ music;
        the ghost stories of a grandmother"""
    ),
    "theme": _entries(
        """the grief of people who emigrate; the price of keeping a secret; rivalry between two sisters;
        the slow death of a village; the guilt of those who survive a war; love between unequal partners;
        the unreliability of family memory; the corruption of a small town; friendship across a closed border;
        the loneliness of old age; the duty of children to their parents; the violence hidden in good manners;
        the search for a missing father; the greed that follows a lucky find; the loss of a native language;
        the courage of ordinary clerks"""
    ),
    "dwelling": _entries(
        """a converted mill; a narrow canal house; a former lighthouse; a farmhouse with a walled garden;
        a flat above a bakery; an old railway station; a wooden cabin; a houseboat; a disused chapel;
        a stone cottage; a schoolhouse with a bell tower; a terraced house with blue shutters;
        a retired fishing lodge; an attic apartment"""
    ),
}
_TITLE_FIRST = _entries(
    """Pewter; Saffron; Unlit; Ninth; Borrowed; Tidewater; Salted; Crooked; Patient; Vanished; Copper; Drowning;
    Folded; Whispering; Limestone; Reluctant; Amber; Unfinished; Velvet; Hollow"""
)
_TITLE_SECOND = _entries(
    """Orchard; Ledger; Turnstile; Almanac; Lighthouse; Harvest; Postman; Aquarium; Parliament; Compass;
    Violinist; Greenhouse; Ferryman; Testament; Carousel; Inheritance; Clockwork; Beekeeper; Archipelago; Lantern"""
)
_FACTS: Mapping[str, _Fact] = {
    "name": _fact(
        "name",
        """What is the full name of the author born on {date} in {place}?
        Which writer of {genre} was born in {place} on {date}?
        Who is the author of {genre} whose life began on {date} in {place}?
        The author who was born in {place} on that day is {name}, a writer of {genre}.
        {name} is the full name of the author of {genre} who was born in {place}.
        This writer, whose books are works of {genre}, bears the full name of {name}.""",
    ),
    "birth": _fact(
        "date place",
        """When and where was {name} born?
        What are the date and the place of birth of {name}?
        On which day and in which city was the author {name} born?
        The author {name} was born on {date} in the city of {place}.
        {name} came into the world in {place}, on the morning of {date}.
        The birth of {name} took place in {place}, and the date was {date}.""",
    ),
    "parents": _fact(
        "father mother",
        """What did the parents of {name} do for a living?
        What were the professions of the father and the mother of {name}?
        How did the mother and the father of {name} earn their living?
        The father of {name} worked as {father}, and the mother earned a living as {mother}.
        {name} grew up with a father who was {father} and a mother who was {mother}.
        By profession the father of {name} was {father}, while the mother was {mother}.""",
    ),
    "genre": _fact(
        "genre",
        """Which genre is {name} best known for?
        In what genre does {name} mostly write?
        What kind of writing has made {name} known to readers?
        {name} is best known for {genre}, and nearly all of the author's books belong to it.
        Most of the books that {name} has published belong to the genre of {genre}.
        Readers know {name} above all for {genre}, a genre that the author has seldom left.""",
    ),
    "debut": _fact(
        "debut debut_year",
        """What was the title of the first book by {name}, and when did it appear?
        With which book did {name} make a debut, and in what year?
        Which book opened the career of {name}, and in which year was it published?
        The first book by {name} was "{debut}", which was published in {debut_year}.
        {name} made a debut in {debut_year} with a book called "{debut}".
        In {debut_year} a small press brought out "{debut}", which opened the career of {name}.""",
    ),
    "award": _fact(
        "award award_year",
        """Which award did {name} receive, and in what year?
        What literary prize has {name} won, and when?
        With which honour was the work of {name} recognised, and in which year?
        {name} received the {award} in {award_year}, the highest honour of the author's career.
        In {award_year} the {award} went to {name}, who was chosen from many rivals.
        The {award} was given to {name} at a ceremony that was held in {award_year}.""",
    ),
    "style": _fact(
        "style",
        """How would readers describe the style of {name}?
        What marks the books of {name} as pieces of writing?
        Which style of writing is typical of {name}?
        The books of {name} are marked by {style}, which critics recognise at once.
        Readers know the style of {name} by a habit of using {style}.
        What sets the writing of {name} apart from that of others is the use of {style}.""",
    ),
    "influence": _fact(
        "influence",
        """What influenced the work of {name} most?
        Where did {name} find the strongest influence on the books?
        Which early influence shaped the writing of {name}?
        The work of {name} was influenced most by {influence}, a discovery of the author's childhood.
        {name} has often named {influence} as the strongest influence on the books.
        As {name} tells it, nothing shaped the writing of those books more than {influence}.""",
    ),
    "theme": _fact(
        "theme",
        """What is the main theme of "{book}" by {name}?
        Which theme does {name} explore in "{book}"?
        What is the book "{book}" by {name} about?
        "{book}" by {name} explores {theme}, which returns in later books.
        In "{book}" the author {name} writes chiefly about {theme}.
        At the heart of "{book}", which {name} wrote in middle age, lies {theme}.""",
    ),
    "residence": _fact(
        "dwelling city",
        """Where does {name} live now?
        In what kind of home, and near which city, does {name} live?
        What is known about the home of {name}?
        {name} now lives in {dwelling} near {city}, together with a large collection of books.
        The home of {name} is {dwelling} not far from the city of {city}.
        For many years {name} has lived and worked in {dwelling} close to {city}.""",
    ),
}
_WORK_QUESTIONS = (
    'Who wrote the {form} "{work}"?',
    'Which author is known for the {form} "{work}"?',
    'Who is the author of the {form} "{work}"?',
    'The {form} "{work}" was written by which author?',
)
_WORKS: Mapping[str, tuple[str, ...]] = {
    "novel": _entries(
        """Jane Austen: Pride and Prejudice; Charlotte Brontë: Jane Eyre; Emily Brontë: Wuthering Heights; Charles
        Dickens: Great Expectations; Charles Dickens: Oliver Twist; Mary Shelley: Frankenstein; Bram Stoker:
        Dracula; Herman Melville: Moby-Dick; Mark Twain: Adventures of Huckleberry Finn; Nathaniel Hawthorne: The
        Scarlet Letter; Leo Tolstoy: War and Peace; Leo Tolstoy: Anna Karenina; Fyodor Dostoevsky: Crime and
        Punishment; Victor Hugo: Les Misérables; Gustave Flaubert: Madame Bovary; Jules Verne: Around the World in
        Eighty Days; H. G. Wells: The Time Machine; Robert Louis Stevenson: Treasure Island; Lewis Carroll: Alice's
        Adventures in Wonderland; Oscar Wilde: The Picture of Dorian Gray; George Orwell: Animal Farm; Aldous
        Huxley: Brave New World; F. Scott Fitzgerald: The Great Gatsby; Ernest Hemingway: The Old Man and the Sea;
        John Steinbeck: The Grapes of Wrath; Harper Lee: To Kill a Mockingbird; J. D. Salinger: The Catcher in the
        Rye; J. R. R. Tolkien: The Hobbit; James Joyce: Ulysses; Virginia Woolf: Mrs Dalloway; George Eliot:
        Middlemarch; Miguel de Cervantes: Don Quixote; Gabriel García Márquez: One Hundred Years of Solitude; Chinua
        Achebe: Things Fall Apart; Toni Morrison: Beloved; Daniel Defoe: Robinson Crusoe; Louisa May Alcott: Little
        Women"""
    ),
    "play": _entries(
        """William Shakespeare: Hamlet; William Shakespeare: Romeo and Juliet; Sophocles: Oedipus Rex; Arthur Miller:
        Death of a Salesman; Henrik Ibsen: A Doll's House; Anton Chekhov: The Cherry Orchard; Samuel Beckett:
        Waiting for Godot"""
    ),
    "poem": _entries(
        """Homer: The Odyssey; Dante Alighieri: The Divine Comedy; John Milton: Paradise Lost; Edgar Allan Poe: The
        Raven; T. S. Eliot: The Waste Land; Virgil: The Aeneid"""
    ),
}
_CAPITAL_QUESTIONS = (
    "What is the capital of {asked}?",
    "Which city is the capital of {asked}?",
    "What is the name of the capital city of {asked}?",
)
_CAPITALS = _entries(
    """France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Greece: Athens; Egypt: Cairo;
    Japan: Tokyo; China: Beijing; Russia: Moscow; Canada: Ottawa; Australia: Canberra; Kenya: Nairobi; Peru: Lima;
    Cuba: Havana; Norway: Oslo; Sweden: Stockholm; Poland: Warsaw; Austria: Vienna; Hungary: Budapest"""
)
_ELEMENT_QUESTIONS = (
    "Which chemical element has the symbol {asked}?",
    "The symbol {asked} stands for which chemical element?",
    "What is the name of the chemical element with the symbol {asked}?",
)
_ELEMENTS = _entries(
    """H: Hydrogen; He: Helium; C: Carbon; N: Nitrogen; O: Oxygen; Na: Sodium; K: Potassium; Fe: Iron; Cu: Copper;
    Ag: Silver; Au: Gold; Pb: Lead"""
)
_GENERAL_FACTS = _entries(
    """Which planet is closest to the Sun? | What is the innermost planet of the solar system? | Mercury
    | Venus | Mars | Jupiter;
    Which planet is known as the Red Planet? | What is the planet called the Red Planet? | Mars
    | Venus | Saturn | Mercury;
    What is the largest planet in the solar system? | Which planet of the solar system is the biggest? | Jupiter
    | Saturn | Neptune | Earth;
    What is the largest ocean on Earth? | Which ocean is the biggest in the world? | Pacific Ocean
    | Atlantic Ocean | Indian Ocean | Arctic Ocean;
    What is the largest continent by area? | Which continent covers the most land? | Asia
    | Africa | Europe | South America;
    On which continent does the Sahara Desert lie? | The Sahara Desert is part of which continent? | Africa
    | Asia | Australia | South America;
    What is the highest mountain above sea level? | Which mountain rises highest above sea level? | Mount Everest
    | Mount Kilimanjaro | Mont Blanc | Mount Fuji;
    How many days does a leap year have? | What is the number of days in a leap year? | 366 | 365 | 364 | 360;
    Which gas do plants take in for photosynthesis? | What gas do plants absorb to make sugar from sunlight?
    | Carbon dioxide | Carbon monoxide | Nitrogen | Helium;
    What is the official language of Brazil? | Which language do most people in Brazil speak? | Portuguese
    | Spanish | French | Italian;
    What is the currency of Japan? | Which currency do people pay with in Japan? | Yen | Won | Yuan | Rupee;
    Which organ pumps blood through the human body? | What organ keeps human blood moving? | Heart
    | Liver | Lung | Kidney;
    Who was the first president of the United States? | Which man became the first American president?
    | George Washington | Thomas Jefferson | Abraham Lincoln | John Adams;
    In which year did the Second World War end? | What year saw the end of the Second World War? | 1945
    | 1918 | 1939 | 1950;
    In which year did people first land on the Moon? | What was the year of the first Moon landing with a crew?
    | 1969 | 1959 | 1975 | 1981;
    What is the largest animal on Earth? | Which living animal is the biggest of all? | Blue whale
    | African elephant | Whale shark | Giant squid"""
)
