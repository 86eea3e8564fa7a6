//! The cases, with and without faults.

use crate::Outcome;
use crate::hub::{COMMIT, WEIGHTS};
use crate::line::Manner;
use crate::scene::{Scene, User, check};
use crate::store::Damage;
use std::path::Path;
use std::time::Instant;

type Case = fn(&mut Scene) -> Outcome<String>;

const CASES: &[(&str, Case)] = &[
    ("whole", whole),
    ("unreported", unreported),
    ("redirected", redirected),
    ("slow", slow),
    ("interrupted", interrupted),
    ("cut-once", cut_once),
    ("cut-always", cut_always),
    ("silent", silent),
    ("unreachable", unreachable),
    ("block-missing", block_missing),
    ("block-zeroed", block_zeroed),
    ("block-changed", block_changed),
    ("unknown-to-the-store", unknown_to_the_store),
    ("token-refused", token_refused),
    ("token-busy", token_busy),
    ("token-renewed", token_renewed),
    ("wrong-checksum", wrong_checksum),
    ("wrong-size", wrong_size),
];

/// Runs the cases whose names hold one of the words, or all. Whether all went well.
pub fn run(dir: &Path, words: &[&str]) -> Outcome<bool> {
    let begun = Instant::now();
    let mut scene = Scene::new(dir)?;
    let blocks: Vec<u64> = scene.store.blocks()?.iter().map(|(_, size)| *size).collect();
    println!(
        "{} bytes of weights in blocks of {blocks:?} bytes ({:.1} s)",
        scene.size(),
        begun.elapsed().as_secs_f64()
    );
    check(blocks.len() > 1, || "there should be several blocks".into())?;
    let mut well = true;
    for (name, case) in CASES {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word)) {
            continue;
        }
        let begun = Instant::now();
        let done = case(&mut scene);
        let seconds = begun.elapsed().as_secs_f64();
        match done {
            Ok(text) => println!("{name}: {text} ({seconds:.1} s)"),
            Err(error) => {
                println!("{name}: FAILED: {error} ({seconds:.1} s)");
                well = false;
            }
        }
    }
    Ok(well)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// That the weights came from the store and not from the hub: the bytes and requests of the line.
fn through_the_store(scene: &Scene) -> Outcome<(u64, Vec<String>)> {
    let (bytes, asked) = scene.line.passed();
    let hub = scene.hub.asked();
    let plain: Vec<_> = hub.iter().filter(|line| line.starts_with("GET") && line.contains(WEIGHTS)).collect();
    check(plain.is_empty(), || format!("the hub was asked for the weights themselves: {plain:?}"))?;
    let asked: Vec<String> = asked.into_iter().filter(|line| !line.contains("telemetry")).collect();
    Ok((bytes, asked))
}

fn count(lines: &[String], part: &str) -> usize {
    lines.iter().filter(|line| line.contains(part)).count()
}

/// Loads what was refused once more, with all in order, so that nothing bad has stayed.
fn then_well(scene: &Scene, user: &User) -> Outcome<()> {
    scene.heal();
    scene.right(user).map(drop)
}

fn whole(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    let loaded = scene.right(&user)?;
    let hub = scene.hub.asked();
    let plain = hub.iter().filter(|line| line.starts_with("GET") && line.contains(WEIGHTS)).count();
    check(plain == 0, || format!("the hub was asked for the weights themselves: {hub:?}"))?;
    let token = format!("GET /api/models/acme/net/xet-read-token/{COMMIT} Bearer hf_test");
    let tokens = count(&hub, &token);
    check(tokens > 0, || format!("no token was asked for: {hub:?}"))?;
    let (bytes, asked) = scene.line.passed();
    let stored: u64 = scene.store.blocks()?.iter().map(|(_, size)| *size).sum();
    check(bytes > stored * 99 / 100 && bytes < stored * 102 / 100, || format!("{bytes} bytes of {stored} came"))?;
    scene.right(&user)?;
    let again = scene.hub.asked();
    check(matches!(&again[..], [one] if one.starts_with("HEAD") && one.contains("config.json")), || {
        format!("{again:?}")
    })?;
    let (more, nothing) = scene.line.passed();
    check(more == 0 && nothing.is_empty(), || format!("the second load asked the store: {nothing:?}"))?;
    let (plans, terms) = (count(&asked, "/reconstructions/"), count(&asked, "/fetch_term"));
    let telemetry = count(&asked, "/telemetry");
    Ok(format!(
        "{} through the store in {:.1} s; {} questions to the hub ({tokens} for tokens), to the store {plans} for plans, \
         {terms} for blocks, {telemetry} telemetry; a second load asks the hub once and the store nothing",
        megabytes(bytes),
        loaded.seconds,
        hub.len()
    ))
}

/// What xet's client reports of a transfer ceases with the variable that ends it for Python's.
fn unreported(scene: &mut Scene) -> Outcome<String> {
    let mut user = scene.user();
    user.environment.push(("HF_HUB_DISABLE_TELEMETRY", "1"));
    scene.right(&user)?;
    let (_, asked) = scene.line.passed();
    check(count(&asked, "/telemetry") == 0, || format!("it was reported: {asked:?}"))?;
    Ok("nothing is reported to the store".into())
}

/// The hub sends on to another place by HTTP, as for clients that do not speak xet.
fn redirected(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    scene.hub.says().redirects = true;
    scene.right(&user)?;
    let hub = scene.hub.asked();
    let (bytes, _) = scene.line.passed();
    check(bytes == 0 && count(&hub, "GET /bridge") > 0, || format!("{bytes} bytes of the store; {hub:?}"))?;
    Ok(format!("by plain HTTP from where the hub sends, in {} pieces", count(&hub, "GET /bridge")))
}

/// A line on which a block takes longer than the patience for silence.
fn slow(scene: &mut Scene) -> Outcome<String> {
    let user = scene.hasty_user();
    scene.line.set(Manner::Slow(6_000_000));
    let loaded = scene.right(&user)?;
    let (bytes, asked) = through_the_store(scene)?;
    Ok(format!("right after {:.0} s, {} in {} requests", loaded.seconds, megabytes(bytes), asked.len()))
}

/// The line dies, and so does the load; the next one goes on.
fn interrupted(scene: &mut Scene) -> Outcome<String> {
    let user = scene.hasty_user();
    scene.line.set(Manner::Dead { after: 60_000_000 });
    let loaded = scene.refused(&user, "Busy", &[WEIGHTS])?;
    let kept = user.partial(scene);
    check(kept > 10_000_000, || format!("only {kept} bytes were kept"))?;
    scene.heal();
    scene.right(&user)?;
    let (bytes, asked) = through_the_store(scene)?;
    let rest = scene.size() - kept;
    check(bytes < rest + 2_000_000, || format!("{bytes} bytes came where {rest} were missing"))?;
    Ok(format!(
        "{} after {:.0} s, {} kept; the next load takes {} in {} requests ({})",
        loaded.kind,
        loaded.seconds,
        megabytes(kept),
        megabytes(bytes),
        asked.len(),
        loaded.text
    ))
}

fn cut_once(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    scene.line.set(Manner::Cut { after: 5_000_000, times: 1 });
    let loaded = scene.right(&user)?;
    let (bytes, asked) = through_the_store(scene)?;
    Ok(format!("right after {:.1} s, {} in {} requests", loaded.seconds, megabytes(bytes), asked.len()))
}

/// Cases that end in an error, and whether the same cache recovers afterwards.
fn fails(scene: &Scene, user: &User, kind: &str, words: &[&str]) -> Outcome<String> {
    let loaded = scene.refused(user, kind, words)?;
    let (bytes, asked) = through_the_store(scene)?;
    let (bytes, requests) = (megabytes(bytes), asked.len());
    let inside = if loaded.inside > 0 { format!(" ({} assertions inside xet)", loaded.inside) } else { String::new() };
    let (kind, seconds, text) = (loaded.kind, loaded.seconds, loaded.text);
    Ok(format!("{kind} after {seconds:.1} s, {bytes} in {requests} requests{inside}: {text}"))
}

fn cut_always(scene: &mut Scene) -> Outcome<String> {
    let user = scene.hasty_user();
    scene.line.set(Manner::Cut { after: 500_000, times: u64::MAX });
    let text = fails(scene, &user, "Busy", &[WEIGHTS])?;
    then_well(scene, &user)?;
    Ok(text)
}

fn silent(scene: &mut Scene) -> Outcome<String> {
    let user = scene.hasty_user();
    scene.line.set(Manner::Silent { after: 500_000 });
    let text = fails(scene, &user, "Busy", &[WEIGHTS, "4s"])?;
    then_well(scene, &user)?;
    Ok(text)
}

fn unreachable(scene: &mut Scene) -> Outcome<String> {
    let user = scene.hasty_user();
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    scene.hub.says().store = format!("http://{free}");
    let text = fails(scene, &user, "Busy", &[WEIGHTS])?;
    then_well(scene, &user)?;
    Ok(text)
}

fn block_missing(scene: &mut Scene) -> Outcome<String> {
    let mut text = String::new();
    for (block, size) in scene.store.blocks()? {
        let user = scene.user();
        let damage = Damage::missing(&block)?;
        text = format!("{text}of {size} bytes: {}; ", fails(scene, &user, "Busy", &[WEIGHTS])?);
        drop(damage);
        then_well(scene, &user)?;
    }
    Ok(text)
}

/// Chunks without their heads, which the client of the store notices.
fn block_zeroed(scene: &mut Scene) -> Outcome<String> {
    let user = scene.hasty_user();
    let block = &scene.store.blocks()?[0].0;
    let damage = Damage::changed(block, |bytes| {
        let half = bytes.len() / 2;
        bytes[half..half + 300_000].fill(0);
    })?;
    let text = fails(scene, &user, "Busy", &[WEIGHTS])?;
    drop(damage);
    then_well(scene, &user)?;
    Ok(text)
}

/// Bytes inside chunks, which only a checksum can notice.
fn block_changed(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    let block = &scene.store.blocks()?[0].0;
    let damage = Damage::changed(block, |bytes| {
        let half = bytes.len() / 2;
        bytes[half] ^= 1;
    })?;
    let text = fails(scene, &user, "Damaged", &[WEIGHTS, "checksum"])?;
    drop(damage);
    then_well(scene, &user)?;
    Ok(text)
}

fn unknown_to_the_store(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    scene.hub.says().hash = "1".repeat(64);
    let text = fails(scene, &user, "Busy", &[WEIGHTS])?;
    then_well(scene, &user)?;
    Ok(text)
}

fn token_refused(scene: &mut Scene) -> Outcome<String> {
    let mut text = String::new();
    for (status, kind) in [(401, "Denied"), (403, "Denied"), (404, "NotFound")] {
        let user = scene.user();
        scene.hub.says().token = Some((status, usize::MAX));
        text = format!("{text}{status}: {}; ", fails(scene, &user, kind, &["acme/net"])?);
        then_well(scene, &user)?;
    }
    Ok(text)
}

fn token_busy(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    scene.hub.says().token = Some((500, 2));
    scene.right(&user)?;
    let user = scene.user();
    scene.hub.says().token = Some((500, usize::MAX));
    let text = fails(scene, &user, "Busy", &["500"])?;
    then_well(scene, &user)?;
    Ok(format!("twice: right; always: {text}"))
}

/// A token that has ended before it is used.
fn token_renewed(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    scene.hub.says().stale = 1;
    scene.right(&user)?;
    let tokens = count(&scene.hub.asked(), "/xet-read-token/");
    let user = scene.user();
    scene.right(&user)?;
    let usual = count(&scene.hub.asked(), "/xet-read-token/");
    check(tokens == usual + 1, || format!("{tokens} tokens, and {usual} where none had ended"))?;
    Ok(format!("right, with {tokens} tokens instead of {usual}"))
}

/// The hub announces other content than the store has.
fn wrong_checksum(scene: &mut Scene) -> Outcome<String> {
    let user = scene.user();
    scene.hub.says().sum = "0".repeat(64);
    let text = fails(scene, &user, "Damaged", &[WEIGHTS, "checksum", "twice"])?;
    let kept = user.partial(scene);
    check(kept == 0, || format!("{kept} bytes of it were kept"))?;
    then_well(scene, &user)?;
    Ok(text)
}

fn wrong_size(scene: &mut Scene) -> Outcome<String> {
    let mut text = String::new();
    for (difference, kind) in [(-1000, "Damaged"), (1000, "Busy")] {
        let user = scene.user();
        let size = scene.size();
        scene.hub.says().size = size.saturating_add_signed(difference);
        text = format!("{text}{difference:+}: {}; ", fails(scene, &user, kind, &[WEIGHTS])?);
        then_well(scene, &user)?;
    }
    Ok(text)
}
