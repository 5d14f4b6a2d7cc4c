use super::*;

const FOLDER: Found = Found { is_folder: true, owner: Some(1000), mode: Some(0o700) };

fn told(check: Check) -> (Verdict, String) {
    assert_eq!(check.verdict != Verdict::Ok, check.hint.is_some(), "bad news comes with advice: {check:?}");
    (check.verdict, check.why)
}

fn status(change: impl FnOnce(&mut serde_json::Value)) -> Status {
    let id = types::NodeId::from_public_key([7; 32]);
    let member = |name: &str| {
        serde_json::json!({
            "id": id, "name": name, "role": "node", "voter": true, "leader": false, "state": "up", "addresses": [],
            "labels": {}, "joined_at": "2026-11-20T15:00:00Z", "seat": 1,
        })
    };
    let mut status = serde_json::json!({
        "mesh_id": "000102030405060708090a0b0c0d0e0f", "mesh_name": "", "node": id, "name": "tower", "role": "node",
        "version": "0.1.0", "started_at": "2026-11-20T15:27:00Z", "leader": {"id": id, "name": "tower"},
        "quorum": true, "estranged": false, "term": 3, "index": 17, "state_hash": "00", "absent_voters": [], "disk_low": false,
        "backend": {"kind": "engine", "address": "http://127.0.0.1:1", "why": "no Ollama", "version": "1", "error": null},
        "members": [member("tower"), member("attic")], "strangers": [],
    });
    change(&mut status);
    serde_json::from_value(status).unwrap()
}

#[test]
fn a_data_folder_belongs_to_its_user_alone() {
    let folder = |found: Found| told(data_folder(Path::new("d"), &Ok(found), Some(1000)));
    assert_eq!(folder(FOLDER).0, Verdict::Ok);
    assert_eq!(folder(Found { mode: None, owner: None, ..FOLDER }).0, Verdict::Ok);
    assert_eq!(folder(Found { mode: Some(0o750), ..FOLDER }).0, Verdict::Warn);
    assert_eq!(folder(Found { mode: Some(0o770), ..FOLDER }).0, Verdict::Fail);
    assert_eq!(folder(Found { is_folder: false, ..FOLDER }), (Verdict::Fail, "`d` is no folder".to_owned()));
    let (verdict, why) = folder(Found { owner: Some(0), ..FOLDER });
    assert_eq!((verdict, why.as_str()), (Verdict::Fail, "`d` belongs to user 0, this is user 1000"));
    let missing = data_folder(Path::new("d"), &Err(io::ErrorKind::NotFound.into()), Some(1000));
    assert_eq!(told(missing).0, Verdict::Warn);
    let closed = data_folder(Path::new("d"), &Err(io::ErrorKind::PermissionDenied.into()), Some(1000));
    assert_eq!(closed.verdict, Verdict::Fail);
}

#[test]
fn a_key_that_others_can_read_is_no_secret() {
    let key = |mode| identity(Path::new("d/identity.key"), &Ok(Found { is_folder: false, mode, ..FOLDER }));
    assert_eq!(told(key(Some(0o600))).0, Verdict::Ok);
    assert_eq!(told(key(None)).0, Verdict::Ok);
    assert_eq!(told(key(Some(0o640))).0, Verdict::Fail);
    assert_eq!(identity(Path::new("k"), &Err(io::ErrorKind::NotFound.into())).verdict, Verdict::Ok);
}

#[test]
fn a_disk_is_low_before_it_is_full() {
    assert_eq!(told(space(Ok(5 << 30))), (Verdict::Ok, "5 GiB left".to_owned()));
    assert_eq!(told(space(Ok(5 << 20))), (Verdict::Warn, "5 MiB left".to_owned()));
}

#[test]
fn a_clock_that_went_back_is_noticed() {
    let now = SystemTime::UNIX_EPOCH + EARLIEST + Duration::from_secs(86_400);
    let hour = Duration::from_secs(3_600);
    assert_eq!(told(clock(now, None)).0, Verdict::Ok);
    assert_eq!(told(clock(now, Some(now - hour))).0, Verdict::Ok);
    assert_eq!(told(clock(now, Some(now + SKEW_MAX))).0, Verdict::Ok);
    let (verdict, why) = told(clock(now, Some(now + hour)));
    assert_eq!(
        (verdict, why.as_str()),
        (Verdict::Fail, "it shows a time 1 h before the last write to the data folder")
    );
    assert_eq!(told(clock(SystemTime::UNIX_EPOCH + hour, None)).0, Verdict::Fail);
}

#[test]
fn a_node_that_does_not_answer_ends_the_examination() {
    let (check, status) = node(Path::new("/d"), Err(Error::NotRunning("/d".into())));
    assert!(status.is_none());
    assert_eq!(told(check), (Verdict::Fail, "no node is running on `/d`".to_owned()));
    let refused = io::Error::from(io::ErrorKind::PermissionDenied);
    let (check, _) = node(Path::new("/d"), Err(Error::NotPermitted { folder: "/d".into(), source: refused }));
    assert!(told(check).1.ends_with(": permission denied"));
}

#[test]
fn each_listener_is_named_and_a_closed_one_fails() {
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let open = listeners(&[("api", at(1), Ok(())), ("bulk", at(2), Ok(()))]);
    assert_eq!(told(open), (Verdict::Ok, "api `127.0.0.1:1`, bulk `127.0.0.1:2`".to_owned()));
    let closed = listeners(&[("api", at(1), Ok(())), ("bulk", at(2), Err(io::ErrorKind::ConnectionRefused.into()))]);
    let (verdict, why) = told(closed);
    assert_eq!(verdict, Verdict::Fail);
    assert!(why.contains("bulk `127.0.0.1:2`") && !why.contains("api"), "{why}");
}

#[test]
fn a_mesh_without_quorum_names_who_must_wake() {
    assert_eq!(told(quorum(&status(|_| ()))).0, Verdict::Ok);
    assert_eq!(told(quorum(&status(|status| status["leader"] = serde_json::Value::Null))).0, Verdict::Warn);
    let check = quorum(&status(|status| {
        status["quorum"] = false.into();
        status["absent_voters"] = serde_json::json!(["attic", "cellar"]);
    }));
    assert_eq!(check.verdict, Verdict::Fail);
    assert_eq!(check.hint.as_deref(), Some("start or wake one of: attic, cellar"));
    let check = quorum(&status(|status| status["estranged"] = true.into()));
    assert_eq!(check.verdict, Verdict::Fail);
    assert!(check.hint.is_some_and(|hint| hint.contains("omx token create")));
}

#[test]
fn members_that_are_down_are_named() {
    assert_eq!(told(members(&status(|_| ()))), (Verdict::Ok, "2, none of them down".to_owned()));
    let one_down = status(|status| status["members"][1]["state"] = "down".into());
    assert_eq!(told(members(&one_down)), (Verdict::Warn, "1 of 2 down: attic".to_owned()));
}

#[test]
fn a_registry_without_room_fails() {
    assert_eq!(told(disk(&status(|_| ()))).0, Verdict::Ok);
    assert_eq!(told(disk(&status(|status| status["disk_low"] = true.into()))).0, Verdict::Fail);
}

#[test]
fn every_check_is_a_line_and_advice_stands_below_it() {
    let checks = [ok("node", "runs"), warn("members", "1 of 2 down: attic\u{7}").hint("start it")];
    let expected = "ok    node     runs\n\
                    warn  members  1 of 2 down: attic\\u{7}\n               hint: start it\n";
    assert_eq!(render(&checks), expected);
    let json = serde_json::to_value(&checks).unwrap();
    assert_eq!(json[1]["verdict"], "warn");
    assert_eq!(json[0]["hint"], serde_json::Value::Null);
}
