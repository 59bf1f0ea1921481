//! The properties of tests/fuzz, checked for a short time with random bytes that differ in every run.

#[path = "../fuzz/properties/mod.rs"]
mod properties;

use crate::support::Dice;
use properties::{Choices, Property, client, crypto, disk, wire};
use secure_messenger::crypto::secret::random;
use std::time::{Duration, Instant};

/// Short, because every `cargo test` runs it; the fuzzers run longer.
const MOMENT: Duration = Duration::from_millis(250);
/// A failure prints the seed; setting it repeats the run.
const SEED: &str = "RANDOM_SEED";

/// Random bytes, or an example with some of them altered.
fn input(dice: &Dice, examples: &[Vec<u8>]) -> Vec<u8> {
    let random = dice.bytes(dice.below(256) as usize * 2);
    let mut choices = Choices(&random);
    if examples.is_empty() || choices.below(4) == 0 {
        return choices.0.to_vec();
    }
    let mut input = examples[choices.below(examples.len())].clone();
    for _ in 0..choices.below(6) {
        choices.edit(&mut input);
    }
    input
}

/// Prints what failed and how to repeat it.
struct Tried<'a>(&'a Property, u64, Vec<u8>);

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Tried(property, seed, input) = self;
            eprintln!("\n\"{}\" does not hold for {input:?}\n{SEED}={seed} repeats it", property.name);
        }
    }
}

fn holds(property: &Property) {
    let given = std::env::var(SEED).ok().map(|seed| seed.parse().expect("a number"));
    let examples = (property.examples)();
    examples.iter().for_each(|example| (property.holds)(example));
    let end = Instant::now() + MOMENT;
    let mut tried = 0;
    while Instant::now() < end || tried == 0 {
        // A new seed for each input, so that a seed repeats a failure with its first input.
        let seed = given.unwrap_or_else(|| u64::from_be_bytes(random()));
        let tried_now = Tried(property, seed, input(&Dice::new(seed), &examples));
        (property.holds)(&tried_now.2);
        tried += 1;
        if given.is_some() {
            break;
        }
    }
    println!("{}: {tried} inputs", property.name);
}

/// PROTOCOL#line, PROTOCOL#packet.
#[test]
fn stream_has_the_same_frames_however_it_is_cut() {
    holds(&wire::FRAMES);
}

/// PROTOCOL#line.
#[test]
fn decoded_message_means_the_same_when_encoded_again() {
    holds(&wire::MESSAGES);
}

/// PROTOCOL#packet.
#[test]
fn packet_is_its_address_and_its_payload() {
    holds(&wire::PACKETS);
}

/// PROTOCOL#signature.
#[test]
fn altered_envelope_does_not_open() {
    holds(&crypto::ENVELOPES);
}

/// PROTOCOL#chunk-mac.
#[test]
fn chunks_that_were_altered_or_moved_do_not_open() {
    holds(&crypto::CHUNKS);
}

/// PROTOCOL#der.
#[test]
fn public_key_has_one_encoding_and_is_usable() {
    holds(&crypto::KEYS);
}

#[test]
fn invalid_key_file_costs_no_work() {
    holds(&crypto::KEY_FILE);
}

#[test]
fn users_file_counts_in_full_or_not_at_all() {
    holds(&disk::USERS);
}

#[test]
fn records_are_read_or_refused_and_left_unchanged() {
    holds(&disk::RECORDS);
}

/// PROTOCOL#history-chain.
#[test]
fn altered_history_is_read_up_to_the_alteration() {
    holds(&disk::HISTORY);
}

/// PROTOCOL#mailbox-file-damage, PROTOCOL#mailbox-file-form.
#[test]
fn altered_mailbox_file_is_read_so_far_or_set_aside() {
    holds(&disk::MAILBOX);
}

#[test]
fn certificate_file_is_valid_or_an_error_with_its_path() {
    holds(&disk::CERTIFICATES);
}

#[test]
fn escape_sequence_never_becomes_text() {
    holds(&client::INPUT);
}

/// PROTOCOL#plain-name.
#[test]
fn any_file_name_becomes_one_plain_name() {
    holds(&client::NAMES);
}

/// PROTOCOL#harmless.
#[test]
fn shown_text_is_harmless_and_no_wider_than_requested() {
    holds(&client::TEXT);
}

#[test]
fn line_stays_valid_after_any_keys_and_has_one_meaning() {
    holds(&client::TYPING);
}
