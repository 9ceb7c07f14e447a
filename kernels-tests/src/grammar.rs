//! Recogniser of the language that the embedded default model writes (`assets/grammar.json`).
//!
//! The file explains its own format. A text is matched sentence by sentence against every sentence rule at
//! once; beside each reachable position stand the slot entries that the words so far have settled, so that a
//! name and its pronouns have to agree. `tools/train/grammar.py` is the same algorithm in Python.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The grammar that is compiled in.
const SOURCE: &str = include_str!("../../assets/grammar.json");

/// How far the entry drawn for a slot (the hero, the place, ...) is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// To the end of the sentence: each sentence stands for itself.
    Sentence,
    /// To the end of the story: "Lily" may not be "he", nor become "Tom", further on.
    Story,
}

/// A part of a production.
#[derive(Clone, Debug)]
enum Part {
    /// Stands for itself.
    Text(String),
    /// Any production of the rule with this index.
    Rule(usize),
    /// This field of the slot's entry.
    Slot { slot: usize, field: usize },
}

/// The parsed grammar.
#[derive(Clone, Debug)]
pub struct Grammar {
    /// Per slot, per entry, the text of each field.
    slots: Vec<Vec<Vec<String>>>,
    /// Per rule, per production, its parts.
    rules: Vec<Vec<Vec<Part>>>,
    /// The rules that are sentences: those that a plot names.
    sentences: Vec<usize>,
}

/// The entry that each slot is known to hold.
type Bound = Vec<Option<usize>>;

/// A way to have matched the text up to a byte position.
type State = (usize, Bound);

/// The text being matched, and where the present sentence starts.
struct Input<'a> {
    text: &'a str,
    start: usize,
    /// Set when the text ended within a sentence that fitted so far.
    cut: bool,
}

impl Grammar {
    /// The grammar of the embedded default model.
    ///
    /// # Panics
    /// If the compiled-in file is not a grammar, which a unit test rules out.
    pub fn load() -> Self {
        Self::parse(SOURCE).expect("assets/grammar.json")
    }

    /// Reads a grammar from JSON.
    ///
    /// # Errors
    /// Says what is missing, misnamed or recursive.
    pub fn parse(json: &str) -> Result<Self, String> {
        let root: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let names = Names::of(&root)?;
        let mut slots = Vec::new();
        for (name, slot) in object(&root, "slots")? {
            let fields = texts(slot, "fields")?.len();
            let entries: Vec<_> = array(slot, "entries")?
                .iter()
                .map(strings)
                .collect::<Result<_, _>>()?;
            if entries.is_empty() || entries.iter().any(|entry| entry.len() != fields) {
                return Err(format!("slot {name}: each entry needs {fields} fields"));
            }
            slots.push(entries);
        }
        let mut rules = Vec::new();
        for productions in object(&root, "rules")?.values() {
            let productions = strings(productions)?;
            rules.push(
                productions
                    .iter()
                    .map(|text| names.parts(text))
                    .collect::<Result<_, _>>()?,
            );
        }
        let mut sentences = BTreeSet::new();
        for plot in array(&root, "plots")? {
            for name in strings(plot)? {
                sentences.insert(names.rule(name.trim_end_matches('?'))?);
            }
        }
        let grammar = Self {
            slots,
            rules,
            sentences: sentences.into_iter().collect(),
        };
        for rule in 0..grammar.rules.len() {
            grammar.check_depth(rule, 0)?;
        }
        Ok(grammar)
    }

    /// Refuses rules that lead back to themselves: matching one would not end.
    fn check_depth(&self, rule: usize, depth: usize) -> Result<(), String> {
        if depth > self.rules.len() {
            return Err("a rule leads back to itself".into());
        }
        let parts = self.rules[rule].iter().flatten();
        parts
            .filter_map(|part| {
                if let Part::Rule(inner) = part {
                    Some(*inner)
                } else {
                    None
                }
            })
            .try_for_each(|inner| self.check_depth(inner, depth + 1))
    }

    /// Counts the complete sentences of `text`, each taken by itself.
    ///
    /// A newline, `<s>` or `</s>` separates stories. The last sentence of the text may be cut short, as long as
    /// it is the beginning of a sentence; it is not counted.
    ///
    /// # Errors
    /// Names the first sentence that is not in the grammar.
    pub fn check(&self, text: &str) -> Result<usize, String> {
        self.check_with(text, Agreement::Sentence)
    }

    /// [`Self::check`] with a choice of how far names and pronouns have to agree.
    ///
    /// # Errors
    /// Names the first sentence that is not in the grammar, or does not agree with those before it.
    pub fn check_with(&self, text: &str, agreement: Agreement) -> Result<usize, String> {
        let text = text.replace("</s>", "\n").replace("<s>", "\n");
        let (told, last) = text.rsplit_once('\n').unwrap_or(("", &text));
        let mut count = 0;
        for story in told.split('\n') {
            let (sentences, rest) = self.check_story(story.trim_matches(' '), agreement)?;
            if !rest.is_empty() {
                return Err(format!("the story ends within a sentence: {rest:?}"));
            }
            count += sentences;
        }
        Ok(count + self.check_story(last.trim_matches(' '), agreement)?.0)
    }

    /// Counts the complete sentences of one story; returns the cut sentence at its end as well.
    fn check_story<'a>(
        &self,
        story: &'a str,
        agreement: Agreement,
    ) -> Result<(usize, &'a str), String> {
        let open = BTreeSet::from([vec![None; self.slots.len()]]);
        let (mut position, mut count, mut bounds) = (0, 0, open.clone());
        while position < story.len() {
            if agreement == Agreement::Sentence {
                bounds.clone_from(&open);
            }
            let mut input = Input {
                text: story,
                start: position,
                cut: false,
            };
            let ends = self.match_sentence(&mut input, &bounds);
            let Some(end) = ends.iter().map(|(end, _)| *end).max() else {
                let rest = &story[position..];
                let shown: String = rest.chars().take(120).collect();
                return if input.cut {
                    Ok((count, rest))
                } else {
                    Err(format!("not a sentence of the grammar: {shown:?}"))
                };
            };
            bounds = ends
                .into_iter()
                .filter(|(other, _)| *other == end)
                .map(|(_, bound)| bound)
                .collect();
            position = end + usize::from(story[end..].starts_with(' '));
            count += 1;
        }
        Ok((count, ""))
    }

    /// All ends of sentences that start at the input's start; a space or the end of the story follows each.
    fn match_sentence(&self, input: &mut Input, bounds: &BTreeSet<Bound>) -> BTreeSet<State> {
        let states: BTreeSet<State> = bounds
            .iter()
            .map(|bound| (input.start, bound.clone()))
            .collect();
        let mut ends = BTreeSet::new();
        for &rule in &self.sentences {
            ends.extend(self.match_rule(input, rule, &states));
        }
        ends.retain(|(end, _)| {
            input.text[*end..].is_empty() || input.text[*end..].starts_with(' ')
        });
        ends
    }

    fn match_rule(
        &self,
        input: &mut Input,
        rule: usize,
        states: &BTreeSet<State>,
    ) -> BTreeSet<State> {
        let mut ends = BTreeSet::new();
        for production in &self.rules[rule] {
            let mut reached = states.clone();
            for part in production {
                reached = self.match_part(input, part, &reached);
            }
            ends.extend(reached);
        }
        ends
    }

    fn match_part(
        &self,
        input: &mut Input,
        part: &Part,
        states: &BTreeSet<State>,
    ) -> BTreeSet<State> {
        match *part {
            Part::Text(ref word) => {
                let step = |(position, bound): &State| {
                    Some((input.advance(*position, word)?, bound.clone()))
                };
                states.iter().filter_map(step).collect()
            }
            // Without this a rule would be walked down for nothing.
            Part::Rule(_) if states.is_empty() => BTreeSet::new(),
            Part::Rule(rule) => self.match_rule(input, rule, states),
            Part::Slot { slot, field } => {
                let mut reached = BTreeSet::new();
                for (position, bound) in states {
                    for (index, entry) in self.slots[slot].iter().enumerate() {
                        if bound[slot].is_some_and(|held| held != index) {
                            continue;
                        }
                        if let Some(end) = input.advance(*position, &entry[field]) {
                            let mut bound = bound.clone();
                            bound[slot] = Some(index);
                            reached.insert((end, bound));
                        }
                    }
                }
                reached
            }
        }
    }
}

impl Input<'_> {
    /// The position behind `word` if the text goes on with it at `position`; notes whether the text ran out.
    fn advance(&mut self, position: usize, word: &str) -> Option<usize> {
        let mut wanted = word.to_owned();
        if position == self.start {
            wanted[..1].make_ascii_uppercase();
        }
        let rest = &self.text[position..];
        self.cut |= wanted.len() > rest.len() && wanted.starts_with(rest);
        rest.starts_with(&wanted).then_some(position + wanted.len())
    }
}

/// The indices behind the names in a grammar file.
struct Names {
    rules: BTreeMap<String, usize>,
    slots: BTreeMap<String, (usize, Vec<String>)>,
}

impl Names {
    fn of(root: &Value) -> Result<Self, String> {
        let rules = object(root, "rules")?.keys().cloned().zip(0..).collect();
        let mut slots = BTreeMap::new();
        for (index, (name, slot)) in object(root, "slots")?.iter().enumerate() {
            slots.insert(name.clone(), (index, texts(slot, "fields")?));
        }
        Ok(Self { rules, slots })
    }

    fn rule(&self, name: &str) -> Result<usize, String> {
        self.rules
            .get(name)
            .copied()
            .ok_or_else(|| format!("no rule {name}"))
    }

    fn slot(&self, name: &str, field: &str) -> Result<Part, String> {
        let (slot, fields) = self
            .slots
            .get(name)
            .ok_or_else(|| format!("no slot {name}"))?;
        let field = fields
            .iter()
            .position(|other| other == field)
            .ok_or_else(|| format!("no field {name}.{field}"))?;
        Ok(Part::Slot { slot: *slot, field })
    }

    /// Splits a production at its `<references>`.
    fn parts(&self, production: &str) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        for (index, piece) in production.split('<').enumerate() {
            let text = if index == 0 {
                piece
            } else {
                let (name, text) = piece
                    .split_once('>')
                    .ok_or_else(|| format!("no '>' in {production:?}"))?;
                parts.push(match name.split_once('.') {
                    Some((slot, field)) => self.slot(slot, field)?,
                    None => Part::Rule(self.rule(name)?),
                });
                text
            };
            if !text.is_empty() {
                parts.push(Part::Text(text.to_owned()));
            }
        }
        Ok(parts)
    }
}

/// The member of `value` that is an object.
fn object<'a>(value: &'a Value, key: &str) -> Result<&'a serde_json::Map<String, Value>, String> {
    value[key]
        .as_object()
        .ok_or_else(|| format!("{key}: not an object"))
}

/// The member of `value` that is an array.
fn array<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>, String> {
    value[key]
        .as_array()
        .ok_or_else(|| format!("{key}: not an array"))
}

/// The member of `value` that is an array of texts.
fn texts(value: &Value, key: &str) -> Result<Vec<String>, String> {
    strings(&value[key]).map_err(|error| format!("{key}: {error}"))
}

/// An array of texts, none of them empty.
fn strings(value: &Value) -> Result<Vec<String>, String> {
    let text = |item: &Value| {
        item.as_str()
            .filter(|text| text.is_ascii() && !text.is_empty())
            .map(str::to_owned)
    };
    let items = value
        .as_array()
        .and_then(|items| items.iter().map(text).collect());
    items.ok_or_else(|| format!("not an array of ASCII texts: {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORY: &str = "Once upon a time there was a little girl named Lily. One day Lily walked to the forest. \
        There she saw a red kite in the grass. Soon she met a big dog named Max. \"I have lost my red kite,\" said \
        Max. Lily smiled and gave the kite to him. \"Thank you, Lily!\" said Max. From that day on, Lily and Max \
        were best friends.\n";

    /// Greedy texts of the default model, prompts included, and the held-out story.
    fn expected_texts() -> Vec<String> {
        let json = include_str!("../../assets/default-model/expected.json");
        let oracle: Value = serde_json::from_str(json).unwrap();
        let mut entries = oracle["from_prompts"].as_array().unwrap().clone();
        entries.extend([oracle["from_bos"].clone(), oracle["held_out"].clone()]);
        let text = |entry: &Value| {
            entry["prompt"].as_str().unwrap_or("").to_owned() + entry["text"].as_str().unwrap()
        };
        entries.iter().map(text).collect()
    }

    /// `STORY` with one passage replaced.
    fn mutated(from: &str, to: &str) -> String {
        assert!(STORY.contains(from), "{from:?} is not in the story");
        STORY.replacen(from, to, 1)
    }

    #[test]
    fn a_story_parses() {
        let grammar = Grammar::load();
        assert_eq!(grammar.check(STORY), Ok(8));
        assert_eq!(grammar.check_with(STORY, Agreement::Story), Ok(8));
    }

    #[test]
    fn what_the_model_wrote_parses() {
        let grammar = Grammar::load();
        for text in expected_texts() {
            let count = grammar.check_with(&text, Agreement::Story).unwrap();
            assert!(count >= 4, "{count} sentences in {text:?}");
        }
    }

    #[test]
    fn separators_split_stories() {
        let grammar = Grammar::load();
        let two = format!("<s>{STORY}</s><s> {STORY}</s>");
        assert_eq!(grammar.check_with(&two, Agreement::Story), Ok(16));
        assert_eq!(grammar.check(""), Ok(0));
        assert_eq!(grammar.check("\n\n"), Ok(0));
    }

    #[test]
    fn the_last_sentence_may_be_cut_anywhere() {
        let grammar = Grammar::load();
        let story = STORY.trim_end();
        for end in 0..story.len() {
            let whole =
                story[..end].matches(". ").count() + usize::from(story[..end].ends_with('.'));
            assert_eq!(
                grammar.check_with(&story[..end], Agreement::Story),
                Ok(whole),
                "{:?}",
                &story[..end]
            );
        }
    }

    #[test]
    fn only_the_last_sentence_may_be_cut() {
        let grammar = Grammar::load();
        assert!(
            grammar
                .check("One day Lily walked to\nOne day Lily walked to the forest.")
                .is_err()
        );
        assert!(
            grammar
                .check("One day Lily walked to One day Lily walked to the forest.")
                .is_err()
        );
        assert!(grammar.check("One day Lily walked to</s>").is_err());
    }

    #[test]
    fn mutated_sentences_are_refused_by_name() {
        let grammar = Grammar::load();
        let cases = [
            ("upon a time", "upon time"),
            ("a little girl named Lily", "a little girl named Tom"),
            ("One day Lily", "one day Lily"),
            ("walked to the forest.", "walked to the forest"),
            ("to the forest", "to the desert"),
            ("grass. Soon", "grass.  Soon"),
            ("grass. Soon", "grass.Soon"),
            ("a big dog named Max", "an owl named Max"),
            ("kite,\" said", "kite\" said"),
            ("were best friends.", "were best friends!"),
            ("Lily and Max", "Lily and and Max"),
            ("Soon she met", "\u{fc} she met"),
        ];
        for (from, to) in cases {
            let error = grammar.check(&mutated(from, to)).expect_err(to);
            assert!(error.contains("sentence"), "{error}");
        }
        let error = grammar
            .check(&mutated("Soon she met", "Soon she ate"))
            .unwrap_err();
        assert!(error.contains("\"Soon she ate"), "{error}");
        assert!(
            grammar.check("The dragon ate").is_err(),
            "a cut sentence has to begin as one"
        );
    }

    #[test]
    fn stories_keep_their_names() {
        let grammar = Grammar::load();
        for (from, to) in [
            ("There she saw", "There he saw"),
            ("my red kite", "my red drum"),
            ("kite to him", "kite to her"),
        ] {
            let text = mutated(from, to);
            assert_eq!(grammar.check(&text), Ok(8), "{to}");
            assert!(grammar.check_with(&text, Agreement::Story).is_err(), "{to}");
        }
        assert!(
            grammar
                .check("Max was so happy that she danced in a circle.")
                .is_err()
        );
    }

    #[test]
    fn unsound_grammars_are_refused() {
        let with = |rules: &str| {
            Grammar::parse(&format!(
                r#"{{"slots": {{}}, "plots": [["a"]], "rules": {rules}}}"#
            ))
        };
        assert_eq!(
            with(r#"{"a": ["go <b>."], "b": ["on", "home"]}"#)
                .unwrap()
                .check("Go on. Go home."),
            Ok(2)
        );
        assert!(
            with(r#"{"a": ["go <b>."], "b": ["on <a>"]}"#)
                .unwrap_err()
                .contains("itself")
        );
        assert!(
            with(r#"{"a": ["go <c>."]}"#)
                .unwrap_err()
                .contains("no rule c")
        );
        assert!(
            with(r#"{"a": ["go <c.name>."]}"#)
                .unwrap_err()
                .contains("no slot c")
        );
        assert!(with(r#"{"a": ["go <a."]}"#).unwrap_err().contains("no '>'"));
        assert!(with(r#"{"b": ["go."]}"#).unwrap_err().contains("no rule a"));
        assert!(Grammar::parse("{").is_err());
    }
}
