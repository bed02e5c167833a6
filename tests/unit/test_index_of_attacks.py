"""Which tests stand against which known attack, and which known error of such services.

The rows are those of two lists made before the service was: the threats to its authentication,
after OWASP's API top ten and its ASVS, and the errors found again and again in others' code.
"""

import ast
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parents[1]

ATTACKS: Final = {
    "another user's code, referrals, sessions": """
        api/test_sessions.py::test_the_session_of_another_user_is_as_if_it_were_not_there
        api/test_referral_codes.py::test_codes_are_of_their_owner_alone
        api/test_referrals.py::test_nobody_else_sees_them_whether_there_are_any_or_not
        api/test_admin.py::test_a_user_may_do_none_of_this_and_learns_nothing""",
    "stuffing of credentials, in parallel": """
        api/test_rate_limits.py::test_attempts_are_counted_before_a_password_is_hashed
        api/test_rate_limits.py::test_logins_are_limited_for_an_account_known_or_not
        api/test_rate_limits.py::test_guessing_from_elsewhere_locks_nobody_out""",
    "enumeration by words or by time": """
        api/test_sessions.py::test_wrong_credentials_are_refused_with_the_same_words
        api/test_hashing_queue.py::test_an_unknown_email_costs_a_hash_too
        api/test_referral_codes.py::test_an_unknown_email_and_one_without_a_code_get_the_same_answer
        api/test_mail.py::test_asking_for_a_mail_is_answered_alike
        api/test_mail.py::test_registering_is_answered_alike_where_emails_are_confirmed""",
    "replay of an authorization code": """
        api/test_oauth_attacks.py::test_of_twenty_parallel_redemptions_of_a_code_one_succeeds
        api/test_oauth_attacks.py::test_a_replayed_code_ends_what_it_gave
        api/test_oauth_attacks.py::test_who_has_seen_a_code_cannot_sign_its_user_out""",
    "theft of a refresh token": """
        api/test_oauth_attacks.py::test_twenty_parallel_refreshes_give_one_child
        api/test_oauth_attacks.py::test_an_older_refresh_token_ends_the_session_and_its_live_leaf
        api/test_sessions.py::test_a_token_used_twice_ends_the_session_at_once""",
    "tokens of a disabled or changed user": """
        api/test_admin.py::test_a_disabled_user_is_out_at_once
        api/test_sessions.py::test_a_new_password_ends_the_other_sessions""",
    "PKCE left out or downgraded": """
        api/test_oauth_attacks.py::test_a_request_without_sound_pkce_gets_no_page
        api/test_oauth_attacks.py::test_pkce_cannot_be_taken_out_of_the_page
        api/test_oauth_attacks.py::test_a_code_is_not_redeemed_without_its_verifier""",
    "open redirect": """
        api/test_oauth_attacks.py::test_nobody_is_sent_to_an_address_that_is_not_registered""",
    "login CSRF, mix-up of issuers": """
        api/test_providers.py::test_a_callback_in_another_browser_is_refused_and_ends_nothing
        api/test_providers.py::test_an_issuer_that_does_not_name_itself_need_not_but_never_names_another""",
    "forged or confused JWTs": """
        unit/test_access_tokens.py::test_what_is_not_ours_is_refused
        api/test_sessions.py::test_other_tokens_are_no_access_tokens
        api/test_providers.py::test_a_forged_id_token_signs_nobody_in""",
    "a revoked token lives on": """
        api/test_sessions.py::test_after_signing_out_the_tokens_do_not_work_anywhere
        api/test_cache.py::test_the_service_starts_without_redis_and_gives_the_same_answers""",
    "mass assignment, too much shown": """
        api/test_users.py::test_a_member_that_is_not_the_callers_to_set_is_refused
        api/test_hostile_input.py::test_members_that_nobody_knows_are_named
        api/test_users.py::test_nothing_about_a_password_is_shown_or_stored
        api/test_problems.py::test_a_problem_says_nothing_that_the_caller_did_not_know""",
    "resources used up": """
        e2e/test_serving.py::test_of_500_sign_ins_at_once_some_are_refused_and_nobody_else_waits
        api/test_hashing_queue.py::test_where_the_queue_is_full_a_hash_is_refused_at_once
        api/test_hostile_input.py::test_a_body_over_16_kib_is_too_large
        api/test_hostile_input.py::test_brackets_deeper_than_the_stack_are_refused
        api/test_hostile_input.py::test_junk_in_a_query_is_named_or_ignored""",
    "past the scope or the role": """
        api/test_oauth_scopes.py::test_a_token_calls_the_routes_of_its_scope_and_no_other
        api/test_admin.py::test_who_is_no_admin_any_more_may_not_at_once""",
    "farming of referrals": """
        api/test_races.py::test_an_email_that_registers_10_times_by_code_counts_once
        api/test_users.py::test_an_erased_email_is_not_referred_again
        sql/test_constraints.py::test_it_cannot_be_broken
        unit/test_referral_codes.py::test_generated_codes_have_10_characters_and_no_look_alikes
        api/test_rate_limits.py::test_registrations_are_limited_for_an_address""",
    "requests forged by the server": """
        api/test_providers.py::test_a_redirect_is_not_followed
        api/test_providers.py::test_a_description_that_leads_astray_is_not_followed
        unit/test_settings.py::test_an_issuer_has_an_address_that_is_safe_to_call""",
    "misconfiguration": """
        e2e/test_command_line.py::test_without_its_secrets_serve_refuses_to_start
        api/test_headers.py::test_every_answer_is_safe_in_a_browser_and_has_an_id
        api/test_oauth_endpoints.py::test_scripts_of_allowed_origins_may_read_all_but_the_page
        api/test_docs.py::test_a_page_and_what_it_loads_is_served_under_a_strict_policy""",
    "forgotten routes": """
        api/test_openapi.py::test_it_documents_every_route_and_no_other
        api/test_oauth_scopes.py::test_every_route_of_the_api_is_public_or_has_its_scope""",
    "hostile services outside": """
        api/test_providers.py::test_an_issuer_in_trouble_is_503_and_soon
        api/test_providers.py::test_what_was_compressed_unasked_is_not_unpacked
        api/test_providers.py::test_a_hanging_issuer_holds_up_nobody_else""",
    "abuse of resetting and confirming": """
        api/test_mail.py::test_of_many_who_send_a_token_at_once_one_is_first
        api/test_mail.py::test_a_token_is_good_for_ten_minutes
        api/test_mail.py::test_a_token_is_good_for_its_purpose_alone
        api/test_mail.py::test_the_database_never_holds_a_token
        api/test_mail.py::test_a_link_leads_where_the_settings_say_whatever_the_request_claims
        api/test_mail.py::test_a_forgotten_password_is_reset""",
    "the login page: framed, forged, scripted": """
        e2e/test_oauth_in_a_browser.py::test_no_other_site_can_frame_the_page
        e2e/test_oauth_in_a_browser.py::test_another_site_cannot_submit_the_form
        api/test_oauth_attacks.py::test_a_form_that_this_browser_was_not_given_grants_nothing
        api/test_oauth_attacks.py::test_hostile_texts_are_only_text_on_the_page""",
    "secrets in logs and errors": """
        api/test_logging.py::test_no_line_holds_a_secret_or_an_email
        api/test_logging.py::test_neither_does_the_traceback_of_a_failure""",
    "500s from hostile bytes": """
        api/test_hostile_input.py::test_credentials_of_any_bytes_are_refused
        api/test_hostile_input.py::test_a_nasty_text_is_refused_and_found_nowhere
        api/test_oauth_endpoints.py::test_what_is_no_form_is_refused""",
}

ERRORS: Final = {
    "two live codes by race": """
        api/test_races.py::test_one_wins_and_the_others_are_told_why""",
    "two accounts by race": """
        sql/test_races.py::test_of_20_accounts_of_one_email_at_once_one_is_made""",
    "a violation of a constraint is a 500": """
        api/test_races.py::test_one_wins_and_the_others_are_told_why
        api/test_referral_codes.py::test_a_chosen_code_that_another_holds_is_refused""",
    "an expired code is in the way": """
        api/test_referral_codes.py::test_an_expired_code_is_over_and_not_in_the_way
        api/test_races.py::test_an_expired_code_lets_one_of_20_new_ones_in""",
    "an old code out of the cache": """
        api/test_cache.py::test_after_the_answer_to_a_write_no_process_gives_the_old_code
        api/test_cache.py::test_readers_that_hammer_on_two_processes_never_see_an_old_code""",
    "hashing on the event loop": """
        unit/test_password_hasher.py::test_hashes_run_beside_the_event_loop
        api/test_hashing_queue.py::test_requests_without_a_password_do_not_wait_for_those_with_one""",
    "passwords cut at 72 bytes or at NUL": """
        unit/test_password_hasher.py::test_a_password_is_right_to_the_last_character
        api/test_users.py::test_any_other_password_is_accepted_and_good_as_a_whole""",
    "NUL in a text": """
        api/test_hostile_input.py::test_a_nasty_text_is_refused_and_found_nowhere
        api/test_hostile_input.py::test_junk_in_an_address_is_not_found""",
    "numbers larger than the database's": """
        unit/test_referral_codes.py::test_a_wish_of_any_size_is_granted_or_refused
        api/test_hostile_input.py::test_junk_in_a_query_is_named_or_ignored""",
    "page 0, or a huge one": """
        api/test_hostile_input.py::test_junk_in_a_query_is_named_or_ignored""",
    "times without a zone": """
        unit/test_requests.py::test_what_is_no_moment_is_refused
        api/test_referral_codes.py::test_an_expiry_is_read_with_its_zone_and_told_in_utc""",
    "overflow of times": """
        unit/test_referral_codes.py::test_days_outside_are_refused
        api/test_hostile_input.py::test_a_cursor_of_any_place_in_time_is_harmless""",
    "two spellings of an e-mail, two accounts": """
        api/test_users.py::test_an_email_that_is_taken_is_taken_in_any_case
        api/test_users.py::test_two_spellings_of_a_domain_are_one_email""",
    "referral tokens that are access tokens": """
        api/test_sessions.py::test_other_tokens_are_no_access_tokens""",
    "a refresh token taken for an access token": """
        api/test_sessions.py::test_other_tokens_are_no_access_tokens
        api/test_oauth_attacks.py::test_what_is_no_refresh_token_is_refused""",
    "mass assignment": """
        api/test_users.py::test_a_member_that_is_not_the_callers_to_set_is_refused
        api/test_admin.py::test_nothing_else_can_be_changed""",
    "enumeration at login and look-up": """
        api/test_sessions.py::test_wrong_credentials_are_refused_with_the_same_words
        api/test_referral_codes.py::test_an_unknown_email_and_one_without_a_code_get_the_same_answer""",
    "referrals' e-mails for everybody": """
        api/test_referrals.py::test_nobody_else_sees_them_whether_there_are_any_or_not
        api/test_referrals.py::test_a_referral_does_not_see_the_referrer_list""",
    "a verifier of e-mails is down, and nobody can register": """
        e2e/test_nothing_is_lost.py::test_while_everything_outside_hangs_registering_goes_on_and_is_made_up_for
        api/test_email_verification.py::test_what_goes_wrong_is_tried_again""",
    "Redis is down, and everything is a 500": """
        api/test_cache.py::test_the_service_starts_without_redis_and_gives_the_same_answers
        api/test_cache.py::test_redis_may_go_in_the_middle_of_the_story""",
    "the account is made, the referral is lost": """
        api/test_users.py::test_an_unusable_code_makes_no_account
        api/test_races.py::test_registrations_beside_the_erasure_of_their_referrer_are_whole_or_refused""",
    "a GET that changes something": """
        api/test_reading.py::test_no_get_changes_anything""",
    "outside calls that are forged or hang": """
        api/test_providers.py::test_a_redirect_is_not_followed
        api/test_providers.py::test_a_hanging_issuer_holds_up_nobody_else""",
    "bodies that are no object, of another type, of 10 MB": """
        api/test_hostile_input.py::test_json_that_is_no_object_is_refused
        api/test_hostile_input.py::test_another_media_type_is_not_supported
        api/test_hostile_input.py::test_chunks_that_add_up_to_more_than_16_kib_are_too_large""",
}


def test_the_lists_are_whole() -> None:
    assert (len(ATTACKS), len(ERRORS)) == (23, 24)


@pytest.mark.parametrize("row", [*ATTACKS, *ERRORS])
def test_each_has_tests(row: str) -> None:
    nodes = {**ATTACKS, **ERRORS}[row].split()
    assert nodes
    for node in nodes:
        file, _, name = node.partition("::")
        tree = ast.parse((TESTS / file).read_text())
        names = {getattr(part, "name", None) for part in tree.body}
        assert name in names, node
