use super::*;

/// The problem with a pickle of protocol 2 with this body.
fn refusal(body: &[u8]) -> Problem {
    run(&[b"\x80\x02", body].concat()).unwrap_err()
}

#[test]
fn globals_that_are_not_needed_are_refused_by_name() {
    for (body, name) in [
        (&b"cos\nsystem\nX\x04\x00\x00\x00true\x85R."[..], "refused: os.system"),
        (b"\x8c\x08builtins\x8c\x04eval\x93.", "refused: builtins.eval"),
        (b"cposix\nsystem\n.", "refused: posix.system"),
        (b"ctorch\nload\n.", "refused: torch.load"),
        (b"ctorch._utils\n_rebuild_tensor_v2.x\n.", "refused: torch._utils._rebuild_tensor_v2.x"),
        (b"ctorch._utils._rebuild_tensor_v2\n\n.", "refused: torch._utils._rebuild_tensor_v2."),
        (b"ccollections\nOrderedDict.fromkeys\n.", "refused: collections.OrderedDict.fromkeys"),
        (b"cnumpy.core.multiarray\nscalar\n.", "refused: numpy.core.multiarray.scalar"),
    ] {
        let problem = refusal(body);
        assert!(problem.contains(name), "{problem}");
    }
    let long = [b"c", &vec![b'a'; 100_000][..], b"\nb\n."].concat();
    assert!(refusal(&long).len() < 500, "a message is not as long as a file wants it to be");
}

#[test]
fn instructions_that_are_not_needed_are_refused() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, PERSID, NEXT_BUFFER, DUP, INT, nonsense.
    for op in [b'i', b'o', 0x81, 0x92, 0x82, b'P', 0x97, b'2', b'I', 0xff] {
        let problem = refusal(&[b'}', op, b'.']);
        assert!(problem.contains(&format!("0x{op:02x}")), "{problem}");
    }
    assert!(run(b"\x80\x05}.").unwrap_err().contains("protocol 5"));
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
        (b"t.", "never begun"),
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
        (b"K\x01)R.", "not a known function"),
        (b"ccollections\nOrderedDict\nK\x01R.", "not a tuple"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with 1 arguments"),
        (b"ctorch\nFloatStorage\n)R.", "Storage(F32) with 0 arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n}\x85R.", "not a tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(}}}}tR.", "not a storage"),
        (b"K\x01Q.", "not one to a storage"),
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
    assert_eq!(values.nodes.len(), 61);
    // A list that holds itself.
    let values = run(b"\x80\x02]q\x00h\x00a.").unwrap();
    assert!(matches!(values.get(values.root), Node::List(items) if items[..] == [values.root]));
}

#[test]
fn long_programs_are_refused() {
    let body = [vec![b']'; MAX_STACK + 1], vec![b'.']].concat();
    assert!(refusal(&body).contains("stack"));
    let body = [b"]0".repeat(MAX_STEPS / 2 + 1), vec![b'.']].concat();
    assert!(refusal(&body).contains("instructions"));
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
        assert!(matches!(values.get(values.root), Node::Int(found) if *found == n), "{values:?}");
    }
    let values = run(b"\x80\x02\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.").unwrap();
    assert!(matches!(values.get(values.root), Node::Other("a large number")));
}
