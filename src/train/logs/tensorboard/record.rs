//! Records of TensorBoard's event files.
//!
//! A record is TFRecord's framing (<https://www.tensorflow.org/tutorials/load_data/tfrecord>, "TFRecords format details")
//! of an `Event` (`event.proto` and `summary.proto` of TensorBoard 2.21) in Protocol Buffers' encoding
//! (<https://protobuf.dev/programming-guides/encoding>), with its fields in the order of their numbers.

/// What an event holds.
pub enum Content<'a> {
    /// The first record of a file.
    Version,
    /// Begins a run or continues it: readers discard earlier records of this step and later ones.
    Start,
    /// Values by their tags.
    Scalars(&'a [(&'a str, f64)]),
}

/// The version of the format, as TensorFlow writes it.
const VERSION: &str = "brain.Event:2";

/// `Event.wall_time`, `step`, `file_version`, `summary`, `session_log`.
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;
/// `Summary.value`; `Summary.Value.tag` and `simple_value`.
const VALUE: u64 = 1;
const TAG: u64 = 1;
const SIMPLE_VALUE: u64 = 2;
/// `SessionLog.status`, and its value `START`.
const STATUS: u64 = 1;
const STATUS_START: u64 = 1;

/// The wire types of Protocol Buffers.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const BYTES: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// A record; `seconds` is the time since 1970.
pub fn record(seconds: f64, step: u64, content: &Content<'_>) -> Vec<u8> {
    let mut event = vec![];
    key(&mut event, WALL_TIME, EIGHT_BYTES);
    event.extend(seconds.to_le_bytes());
    if step > 0 {
        key(&mut event, STEP, VARINT);
        varint(&mut event, step);
    }
    match content {
        Content::Version => bytes(&mut event, FILE_VERSION, VERSION.as_bytes()),
        Content::Start => {
            let mut log = vec![];
            key(&mut log, STATUS, VARINT);
            varint(&mut log, STATUS_START);
            bytes(&mut event, SESSION_LOG, &log);
        }
        Content::Scalars(scalars) => {
            let mut summary = vec![];
            for (tag, scalar) in *scalars {
                let mut value = vec![];
                bytes(&mut value, TAG, tag.as_bytes());
                key(&mut value, SIMPLE_VALUE, FOUR_BYTES);
                value.extend((*scalar as f32).to_le_bytes());
                bytes(&mut summary, VALUE, &value);
            }
            bytes(&mut event, SUMMARY, &summary);
        }
    }
    framed(&event)
}

/// The length, its checksum, the data, its checksum.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let checksums = [masked_crc(&length), masked_crc(data)].map(u32::to_le_bytes);
    [&length, &checksums[0][..], data, &checksums[1]].concat()
}

/// CRC-32C (Castagnoli), masked as TFRecord wants it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

/// Seven bits per byte, the lowest first; the highest bit of a byte says that more follow.
fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/fixtures/events.tfevents`, written by TensorBoard's own writer (`tests/reference/tensorboard.py`).
    #[test]
    fn records_are_the_bytes_that_tensorboard_writes() {
        let time = 1_800_000_000.25;
        let long = "valid/".to_string() + &"x".repeat(200);
        let records = [
            record(time, 0, &Content::Version),
            record(time + 1.0, 0, &Content::Start),
            record(time + 2.0, 1, &Content::Scalars(&[("train/loss", 1.5), ("train/lr", 1e-3)])),
            record(time + 3.0, 300, &Content::Scalars(&[("valid/top1", 0.0), (&long, f64::NAN)])),
            record(time + 4.0, 301, &Content::Start),
            record(time + 5.0, u64::from(u32::MAX), &Content::Scalars(&[("train/loss", f64::INFINITY)])),
        ];
        let fixture = include_bytes!("../../../../tests/fixtures/events.tfevents");
        assert!(records.concat() == fixture, "{:?}", records.concat());
    }

    /// RFC 3720, appendix B.4: the CRC-32C of 32 bytes of zeros.
    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
