"""Units of amounts: ISO 4217 currencies, in minor units, and what companies call their own."""

import re
from typing import Final

from service.domain.errors import InvalidInput

_OWN: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
# The active codes of ISO 4217 that money is paid in, as of 2026.
CURRENCIES: Final = frozenset(
    re.findall(
        "[A-Z]{3}",
        """
        AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN
        BZD CAD CDF CHF CLF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP
        GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES
        KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU
        MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON
        RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND
        TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR
        ZMW ZWG
        """,
    )
)


def check_unit(unit: str, field: str = "unit") -> None:
    """Raise InvalidInput unless it is a currency, or a name that cannot be taken for one."""
    if unit in CURRENCIES:
        return
    if not _OWN.fullmatch(unit) or unit.upper() in CURRENCIES:
        raise InvalidInput(
            "A unit must be an ISO 4217 code, such as EUR, or your own in lower case, such as "
            "points.",
            field=field,
        )
