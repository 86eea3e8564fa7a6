use super::*;

/// The problem with a pickle of protocol 2 with this body.
fn refusal(body: &[u8]) -> Problem {
    run(&[b"\x80\x02", body].concat()).unwrap_err()
}

/// The description of a pickle with this body.
fn described(body: &[u8]) -> String {
    let values = run(&[b"\x80\x02", body].concat()).unwrap();
    values.describe(values.root)
}

#[test]
fn unknown_globals_are_named_and_never_called() {
    for (body, name) in [
        (&b"cos\nsystem\nX\x04\x00\x00\x00true\x85R."[..], "os.system"),
        (b"\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x8c\x08builtins\x8c\x04eval\x93X\x01\x00\x00\x001\x85R.", "builtins.eval"),
        (b"ctorch\nload\n)R.", "torch.load"),
        (b"ctorch._utils\n_rebuild_tensor_v2.x\n.", "torch._utils._rebuild_tensor_v2.x"),
        (b"ccollections\nOrderedDict.fromkeys\n.", "collections.OrderedDict.fromkeys"),
        (b"cnumpy.core.multiarray\nscalar\n(NNtR.", "numpy.core.multiarray.scalar"),
        // NEWOBJ, attributes, NEWOBJ_EX, items of a class derived from dict or list, a call of what a call returned.
        (b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb.", "argparse.Namespace"),
        (b"ca\nB\n)}\x92.", "a.B"),
        (b"ca\nB\n)\x81X\x01\x00\x00\x00kK\x01s(K\x01K\x02u.", "a.B"),
        (b"ca\nB\n)RK\x01a(K\x01K\x02e(K\x03\x90.", "a.B"),
        (b"ca\nb\n)R)R.", "a.b"),
        (b"\x82\x01)\x81.", "an object of an extension registry"),
    ] {
        assert_eq!(described(body), name, "{:?}", body.escape_ascii().to_string());
    }
    let long = [b"c", &vec![b'a'; 100_000][..], b"\nb\n."].concat();
    assert!(described(&long).len() < 200, "a message is not as long as a file wants it to be");
}

#[test]
fn what_is_no_tensor_is_no_error_until_a_tensor_is_needed() {
    let tensor = |arguments: &[u8]| [b"ctorch._utils\n_rebuild_tensor_v2\n(", arguments, b"tR."].concat();
    let storage = |class: &[u8], count: &[u8]| {
        [b"(X\x07\x00\x00\x00storagectorch\n", class, b"\nX\x01\x00\x00\x000N", count, b"tQ"].concat()
    };
    let float = storage(b"FloatStorage", b"K\x04");
    for (body, words) in [
        (tensor(&[&float[..], b"K\x00K\x02\x85K\x01\x85\x89N"].concat()), "a tensor"),
        (tensor(&[&float[..], b"K\x00K\x02\x85K\x01\x85\x89N}"].concat()), "a tensor"),
        (tensor(&[&float[..], b"K\x00K\x02\x85K\x01\x85\x89N}X\x03\x00\x00\x00neg\x88s"].concat()), "negative view"),
        (tensor(&[&float[..], b"J\xff\xff\xff\xffK\x02\x85K\x01\x85\x89N"].concat()), "at most 16 lengths"),
        (
            tensor(&[&storage(b"ComplexFloatStorage", b"K\x04")[..], b"K\x00))\x89N"].concat()),
            "torch.ComplexFloatStorage",
        ),
        (tensor(&[&storage(b"FloatStorage", b"J\xff\xff\xff\xff")[..], b"K\x00))\x89N"].concat()), "without a storage"),
        (tensor(b"}}}}"), "too few arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n}\x85R.".to_vec(), "a dictionary"),
        (b"ctorch\nFloatStorage\n)R.".to_vec(), "a storage"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.".to_vec(), "a dictionary made of another"),
        (b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R.".to_vec(), "a dictionary"),
        (b"K\x01Q.".to_vec(), "an unsupported persistent id"),
    ] {
        let found = described(&body);
        assert!(found.ends_with(words), "{:?}: {found}", body.escape_ascii().to_string());
    }
}

#[test]
fn tensors_of_derived_classes_are_tensors() {
    let derived = [
        &b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nca\nTensor\n"[..],
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x04tQK\x00K\x04\x85K\x01\x85\x89Nt",
        b"}tR.",
    ];
    assert_eq!(described(&derived.concat()), "a tensor");
    // Nested a thousand times, it is visited once.
    let [open, close] = [b"(h\x00h\x00".repeat(1000), b"}t".repeat(1000)];
    let nested = [b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00", &open[..], b")", &close, b"R."].concat();
    assert_eq!(described(&nested), "a tensor of a derived class");
}

#[test]
fn instructions_that_torch_does_not_write_are_refused() {
    // INST, OBJ, PERSID, NEXT_BUFFER, READONLY_BUFFER, INT, nonsense.
    for op in [b'i', b'o', b'P', 0x97, 0x98, b'I', 0xff] {
        let problem = refusal(&[b'}', op, b'.']);
        assert!(problem.contains(&format!("0x{op:02x}")), "{problem}");
    }
    assert!(run(b"\x80\x05}.").is_ok());
    assert!(run(b"\x80\x06}.").unwrap_err().contains("protocol 6"));
    assert!(run(b"\x80\x01}.").unwrap_err().contains("protocol 1"));
}

#[test]
fn nonsense_is_refused() {
    for (body, words) in [
        (&b""[..], "ends too early"),
        (b"}", "ends too early"),
        (b".", "more from its stack"),
        (b"K\x01\x86.", "more from its stack"),
        (b"K\x01(0.", "more from its stack"),
        (b"t.", "never began"),
        (b"}(K\x01u.", "a key without a value"),
        (b"](K\x01K\x02u.", "not a dictionary"),
        (b"}K\x01a.", "not a list"),
        (b"]K\x01b.", "attributes"),
        (b"](K\x01\x90.", "not a set"),
        (b"h\x07.", "place 7"),
        (b"X\xff\xff\xff\xffa.", "ends too early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.", "ends too early"),
        (b"B\xff\xff\xff\x7fa.", "ends too early"),
        (b"X\x01\x00\x00\x00\xff.", "UTF-8"),
        (b"K\x01)R.", "not a function"),
        (b"ccollections\nOrderedDict\nK\x01R.", "not a tuple"),
        (b"K\x01K\x02\x93.", "not text"),
    ] {
        let problem = refusal(body);
        assert!(problem.contains(words), "{:?}: {problem}", body.escape_ascii().to_string());
    }
}

#[test]
fn shared_values_are_stored_once() {
    // Each of 60 tuples holds the one before it twice: written out, 2^60 values.
    let mut body = b")q\x00".to_vec();
    for i in 0..60u8 {
        body.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
    }
    body.push(b'.');
    let values = run(&[b"\x80\x02", &body[..]].concat()).unwrap();
    assert_eq!(values.table.len(), 61);
    // A list that holds itself.
    let values = run(b"\x80\x02]q\x00h\x00a.").unwrap();
    assert!(matches!(values.get(values.root), Pickled::List(items) if items[..] == [values.root]));
}

#[test]
fn long_programs_are_refused() {
    let body = [vec![b']'; MAX_STACK + 1], vec![b'.']].concat();
    assert!(refusal(&body).contains("stack"));
    let body = [b"N".to_vec(), b"20".repeat(MAX_STEPS / 2 + 1), vec![b'.']].concat();
    assert!(refusal(&body).contains("instructions"));
    let body = [b"ca\nb\n0".repeat(MAX_STEPS / 3 + 1), vec![b'.']].concat();
    assert!(refusal(&body).contains("values"));
    let key = [b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x41\x00\x00\x00", &[b'0'; 65][..], b"NK\x01tQ."];
    assert!(refusal(&key.concat()).contains("key of a storage"));
}

#[test]
fn whole_numbers_have_a_sign() {
    for (body, n) in [
        (&b"J\xfe\xff\xff\xff."[..], -2i64),
        (b"M\xff\xff.", 65535),
        (b"\x8a\x00.", 0),
        (b"\x8a\x01\xff.", -1),
        (b"\x8a\x02\xff\x00.", 255),
        (b"\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80.", i64::MIN),
    ] {
        let values = run(&[b"\x80\x02", body].concat()).unwrap();
        assert!(matches!(values.get(values.root), Pickled::Int(found) if *found == n), "{values:?}");
    }
    let values = run(b"\x80\x02\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.").unwrap();
    assert!(matches!(values.get(values.root), Pickled::Other("a large number")));
}
