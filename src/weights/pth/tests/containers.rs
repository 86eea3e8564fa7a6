//! The containers of the tensors: the zip, and the checkpoint.

use super::*;

/// CRC-32, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

/// A zip as `torch.save` writes it: elements aligned to 64 bytes by a field "FB" in the local header, lengths behind
/// the elements, and the end of the directory in both forms.
fn torch_zip(stem: &str, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    let u16s = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let u32s = |values: &[usize]| values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect::<Vec<u8>>();
    let u64s = |values: &[usize]| values.iter().flat_map(|&v| (v as u64).to_le_bytes()).collect::<Vec<u8>>();
    for (name, bytes) in entries {
        let name = format!("{stem}/{name}");
        let (start, crc, len) = (zip.len(), crc32(bytes) as usize, bytes.len());
        let padding = (64 - (start + 30 + name.len() + 4) % 64) % 64;
        zip.extend([b"PK\x03\x04".to_vec(), u16s(&[0, 0x0808, 0, 0, 0]), u32s(&[0, 0, 0])].concat());
        zip.extend([u16s(&[name.len() as u16, padding as u16 + 4]), name.clone().into_bytes()].concat());
        zip.extend([b"FB".to_vec(), u16s(&[padding as u16]), vec![b'Z'; padding]].concat());
        zip.extend([bytes.to_vec(), b"PK\x07\x08".to_vec(), u32s(&[crc, len, len])].concat());
        directory.extend([b"PK\x01\x02".to_vec(), u16s(&[0, 0, 0x0808, 0, 0, 0]), u32s(&[crc, len, len])].concat());
        directory.extend([u16s(&[name.len() as u16, 0, 0, 0, 0]), u32s(&[0, start]), name.into_bytes()].concat());
    }
    let (start, count) = (zip.len(), entries.len());
    zip.extend(&directory);
    let end = zip.len();
    zip.extend([b"PK\x06\x06".to_vec(), u64s(&[44]), u16s(&[0x031e, 45]), u32s(&[0, 0])].concat());
    zip.extend(u64s(&[count, count, directory.len(), start]));
    zip.extend([b"PK\x06\x07".to_vec(), u32s(&[0]), u64s(&[end]), u32s(&[1])].concat());
    let counts = u16s(&[0, 0, count as u16, count as u16]);
    zip.extend([b"PK\x05\x06".to_vec(), counts, u32s(&[directory.len(), start]), u16s(&[0])].concat());
    zip
}

#[test]
fn files_of_any_name_are_read() {
    // The folder in the zip has the name that the file was saved under, whose length moves every record.
    let dir = folder();
    let path = dir.path().join("renamed");
    let elements: Vec<u8> = [1f32, 2.].iter().flat_map(|v| v.to_le_bytes()).collect();
    let pickle = one_tensor(2, 0, &[2], &[1]);
    let entries: [(&str, &[u8]); 4] =
        [("data.pkl", &pickle), ("byteorder", b"little"), ("data/0", &elements), ("version", b"3\n")];
    for length in 1..=200 {
        fs::write(&path, torch_zip(&"n".repeat(length), &entries)).unwrap();
        let found = Weights::read(&path).unwrap_or_else(|error| panic!("a stem of {length} letters: {error}"));
        assert_eq!(f32s(&found.tensors["w"]), [1., 2.]);
    }
    // With other entries first, another length is the one that misleads.
    for length in 1..=80 {
        let entries: Vec<_> = entries.iter().rev().copied().collect();
        fs::write(&path, torch_zip(&"n".repeat(length), &entries)).unwrap();
        assert_eq!(Weights::read(&path).unwrap().tensors.len(), 1);
    }
    // Data before the zip is not part of torch's zip.
    let good = torch_zip("archive", &entries);
    for before in [&b"junk"[..], b"#!/bin/sh\n", b"PK\x03\x04 and more", &good[..200]] {
        fs::write(&path, [before, &good].concat()).unwrap();
        refusal(&path);
    }
}

#[test]
fn other_things_in_a_zip_are_named() {
    let good = one_tensor(2, 0, &[2], &[1]);
    let data: &[u8] = &[0; 8];
    let pickled = ("x/data.pkl", &good[..]);
    for (text, words) in [
        (refuses(&[("arr_0.npy", data)]), "NumPy arrays"),
        (refuses(&[pickled, ("x/data/0", data), ("x/code/a.py", b""), ("x/constants.pkl", b"")]), "torch.jit.load"),
        (refuses(&[pickled, ("x/data/0", data), ("x/code/__torch__/a.py", b"")]), "TorchScript"),
        (refuses(&[("x/archive_format", b"pt2"), ("x/models/model.json", b"{}")]), "torch.export.load"),
        (refuses(&[("serialized_exported_program.json", b"{}"), ("version", b"")]), "torch.export.load"),
        (refuses(&[("config.json", b"{}"), ("model.weights.h5", b"")]), "Keras"),
        (refuses(&[("runs/best.pth", data), ("runs/log.txt", b"")]), "holds runs/best.pth; unpack"),
    ] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn the_state_dict_is_found_among_other_things() {
    let tensor = |name: &str, key: u32| {
        // The tensor "w" over storage 0, under another name and over another storage.
        let mut body = one_tensor(2, 0, &[2], &[1]);
        let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        let at = body.windows(6).position(|w| w == b"X\x01\0\0\x000").unwrap();
        body.splice(at..at + 6, text(&key.to_string()));
        [text(name), body[9..body.len() - 2].to_vec()].concat()
    };
    let dict = |name: &str, inner: &[Vec<u8>]| {
        let text = [&b"X"[..], &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat();
        [text, b"}(".to_vec(), inner.concat(), b"u".to_vec()].concat()
    };
    let whole = |entries: &[Vec<u8>]| [b"\x80\x02}(", &entries.concat()[..], b"u."].concat();
    let number = |name: &str| [&b"X"[..], &(name.len() as u32).to_le_bytes(), name.as_bytes(), b"K\x01"].concat();
    let read = |pickle: &[u8]| {
        let dir = folder();
        let path = dir.path().join("w.pth");
        let storages: [&[u8]; 3] = [&[0; 8], &[1; 8], &[2; 8]];
        let [a, b, c] = storages;
        fs::write(&path, packed(&[("x/data.pkl", pickle), ("x/data/0", a), ("x/data/1", b), ("x/data/2", c)])).unwrap();
        Weights::read(&path)
    };
    let of = |found: &Weights| found.tensors["w"].to_vec1::<f32>().unwrap()[0].to_bits() & 0xff;
    let (plain, average) = (dict("state_dict", &[tensor("w", 1)]), dict("state_dict_ema", &[tensor("w", 2)]));
    // The order of the keys does not matter, timm's does.
    for entries in [[plain.clone(), average.clone()], [average.clone(), plain.clone()]] {
        let found = read(&whole(&entries)).unwrap();
        assert_eq!((of(&found), found.notes.len()), (2, 1), "{:?}", found.notes);
    }
    // None, or an object, in their place: the plain ones.
    let none = [&b"X\x0e\0\0\0state_dict_ema"[..], b"N"].concat();
    let object = [&b"X\x09\0\0\0model_ema"[..], b"ca\nEma\n)\x81"].concat();
    let found = read(&whole(&[none, object, plain.clone()])).unwrap();
    assert_eq!((of(&found), found.notes.len()), (1, 0));
    // Names that nobody knows: the one dictionary of tensors, not the optimizer's.
    let optimizer = dict("optimizer", &[dict("state", &[]), number("step")]);
    let found =
        read(&whole(&[optimizer.clone(), dict("my_net", &[tensor("w", 1), number("x")]), number("epoch")])).unwrap();
    assert_eq!(of(&found), 1);
    let two = read(&whole(&[dict("teacher", &[tensor("w", 0)]), dict("student", &[tensor("w", 1)])])).unwrap_err();
    assert!(two.to_string().contains("\"teacher\", \"student\""), "{two}");
    // A flat dictionary of tensors and other things.
    let found = read(&whole(&[tensor("w", 1), tensor("v", 0), optimizer, number("epoch")])).unwrap();
    assert_eq!((found.tensors.len(), found.others.len()), (2, 2), "{:?}", found.others);
}
